#!/bin/sh
# Checks what only a container can get wrong, then becomes python: SIGTERM reaches python, its exit code is the container's.
set -eu
umask "${UMASK:-0022}"

# Commands that train or write into a run folder need both volumes; reading ones (audit, report --out, --help) may not.
case "${1:-}" in
  study | fit | validate | test | predict)
    for folder in /runs /cache; do
      if ! probe=$(mktemp "$folder/.cdmem.XXXXXX" 2> /dev/null); then
        user="$(id -u):$(id -g)"
        echo "cdmem: error: $folder: user $user cannot write there: mount a folder of this user, chown it to $user," \
          "or add --user with the folder's owner" >&2
        exit 2
      fi
      rm -f -- "$probe"
    done
    ;;
esac

# A folder mounted as /cache is empty at first.
mkdir -p -- "$HOME" "$WANDB_DIR" 2> /dev/null || true

exec python -m cdmem "$@"
