"""Configs of somebody else's run folder: data, never code.

A config may name any class, and the parser imports what is named, *while* it parses. So every config is read here
first, as plain YAML nodes: one that lies in a run folder (whoever made it), and every file that it includes, may name
only the classes of :func:`trusted`; ``--allow_code`` lifts that. Configs elsewhere and the command line are the user's
own words. Rule, reasons and limits: ``docs/security.md``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from cdmem.errors import InputError

FLAG = "--allow_code"
# What cdmem writes into a run folder, a sweep's folder or an exported one.
MARKS = (
    "environment.json",
    "training_set.json",
    "finished.json",
    "sweep.json",
    "audit/summary.json",
    "last.ckpt",
    "cdmem.json",
    "model_index.json",
)
# Optimizers, networks, models and callbacks. A class must be named directly in its module, so that nothing is reached
# through what a module imports (``cdmem.run.folder.subprocess.run``).
MODULES = (
    "torch.optim",
    "cdmem.networks",
    "cdmem.training.teacher",
    "cdmem.training.student",
    "cdmem.training.checkpoint_callback",
    "callbacks.evaluation",
    "callbacks.memorization",
    "callbacks.metric",
    "callbacks.onset",
    "callbacks.panels",
    "callbacks.quality",
    "callbacks.samples",
    "callbacks.whitebox",
)
METRICS = "cdmem.metrics"
# Lightning's, one by one. Left out on purpose: what calls back (LambdaCallback), what writes, deletes or uploads where
# the config says (ModelCheckpoint, all loggers, profilers, plugins), what reads further files (DeepSpeedStrategy).
LIGHTNING = {
    "callbacks": "DeviceStatsMonitor EarlyStopping GradientAccumulationScheduler LearningRateMonitor ModelSummary "
    "RichModelSummary RichProgressBar Timer TQDMProgressBar",
    "strategies": "DDPStrategy SingleDeviceStrategy",
}
# ``sha256`` says which TorchScript file, that is which program, may run (`InceptionFeatures`).
REFUSED_KEYS = ("sha256", "dict_kwargs")
MAX_BYTES, MAX_NODES, MAX_DEPTH = 2**20, 50_000, 60

CLASS = re.compile(r"[A-Z][A-Za-z0-9]*")
KEY = re.compile(r"[A-Za-z0-9_\-]+\+?")
PLAIN = re.compile(r"(?!- )[A-Za-z0-9_\-+/=,.%@ ]*|[0-9]+(:[0-9]+)+")
NUMBER = re.compile(r"[-+]?[0-9._]+([eE][-+]?[0-9]+)?")
INTERPOLATION = re.compile(r"\$\{\.*([A-Za-z_][A-Za-z0-9_.]*)\}")
TAGS = tuple(
    f"tag:yaml.org,2002:{n}" for n in ("str", "int", "float", "bool", "null", "timestamp", "merge", "map", "seq")
)
STAGE = r"(?:teacher\.|students\.[^.]+\.)?"
# Settings that are paths or words by their type: the parser imports nothing there.
TEXT = re.compile(STAGE + r"(?:data\..+|run_dir|ckpt_path|model\.(?:init_args\.)?teacher|trainer\.default_root_dir)")
TEXT_NAMES = {"data", "run_dir", "ckpt_path", "teacher", "default_root_dir"}


def trusted(name: str) -> bool:
    """Whether a class path may stand in a config of somebody else: see :data:`MODULES` and :data:`LIGHTNING`."""
    module, _, last = name.rpartition(".")
    if not CLASS.fullmatch(last):
        return False
    if module in MODULES or (module.rpartition(".")[0] == METRICS and module.rpartition(".")[2].isidentifier()):
        return True
    return any(module == f"lightning.pytorch.{part}" and last in names.split() for part, names in LIGHTNING.items())


def run_folders(path: str | Path) -> list[Path]:
    """The run folders that a file lies in, the nearest first; by its name and by where a link leads."""
    literal = Path(os.path.abspath(path))
    parents = dict.fromkeys([*literal.parents, *literal.resolve().parents])
    return [folder for folder in parents if _marked(folder)]


def _marked(folder: Path) -> bool:
    try:
        return any((folder / name).is_file() for name in MARKS) or any((folder / "checkpoints").glob("*.ckpt"))
    except OSError:
        return False


def split_flag(args: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without ``--allow_code``, and whether it was there."""
    rest = [a for a in args if a != FLAG]
    return rest, len(rest) < len(args)


def admit(args: Sequence[str], study: bool = False) -> list[str]:
    """The arguments without ``--allow_code``, after a look into every config that they name.

    Args:
        args: of ``fit``, ``validate``, ``test``, ``predict`` or ``study``.
        study: ``--run_dir`` counts wherever it stands; for the others a later ``--config`` overrides it.

    Raises:
        InputError: a config of a run folder names code, asks for the environment, or wants to write elsewhere.
    """
    rest, allowed = split_flag(args)
    if allowed:
        return rest
    given = list(_options(rest))
    keys = [key for key, _ in given]
    last_config = max((k for k, key in enumerate(keys) if key in ("config", "c")), default=-1)
    chosen = "run_dir" in (keys if study else keys[last_config + 1 :])
    scan = _Scan(chosen)
    for key, value in given:
        # A study's --student.data.path is --data.path of that stage.
        if not TEXT.fullmatch(key) and not (study and TEXT.fullmatch(key.partition(".")[2])):
            scan.text(value, key, Path())
    return rest


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """``--key value`` and ``--key=value`` as pairs; a word without an option has the key ''."""
    k = 0
    while k < len(args):
        name, equals, value = args[k].partition("=")
        if not name.startswith("-"):
            yield "", args[k]
        elif equals:
            yield name.lstrip("-"), value
        elif k + 1 < len(args) and not args[k + 1].startswith("--"):
            yield name.lstrip("-"), args[k + 1]
            k += 1
        k += 1


def _file(text: str, base: Path) -> Path | None:
    """The file that a text names, as the parser would find it."""
    try:
        file = base / Path(text).expanduser()
        return file if text.strip() and file.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None


class _Scan:
    """One look into configs: own ones are searched for includes, those of run folders are held to the rule.

    Args:
        run_dir_given: the user says where the run is written.
    """

    def __init__(self, run_dir_given: bool) -> None:
        self.run_dir_given = run_dir_given
        self.seen: set[tuple[Path, bool]] = set()
        self.nodes = 0

    def text(self, value: str, key: str, base: Path) -> None:
        """A value of the user's own: it may name a file, or hold YAML that does."""
        file = _file(value, base)
        if file is not None:
            self.file(file, key, ())
        elif len(value) < MAX_BYTES:
            node = _compose(value)
            if not isinstance(node, yaml.ScalarNode | None):
                self._walk(node, (key,) if key else (), None, base, ())

    def file(self, file: Path, key: str, inside: tuple[Path, ...]) -> None:
        """A config file; ``inside`` holds the run folders of the config that includes it."""
        roots = tuple(run_folders(file))
        if inside and not any(file.resolve().is_relative_to(root.resolve()) for root in inside):
            raise InputError(key, file, "is included from a run folder that it does not lie in", _mend())
        strange = bool(inside or roots)
        if (file.resolve(), strange) in self.seen:
            return
        self.seen.add((file.resolve(), strange))
        try:
            with file.open("rb") as stream:
                content = stream.read(MAX_BYTES + 1)
            node = _compose(content.decode("utf-8"))
        except (OSError, UnicodeDecodeError):
            # Nor can the parser read it.
            return
        if not strange:
            if node is not None and len(content) <= MAX_BYTES:
                self._walk(node, (), file, file.parent, ())
            return
        if len(content) > MAX_BYTES or not isinstance(node, yaml.MappingNode):
            raise InputError(key or "config", file, "is no config of usual size", "give a config.yaml that cdmem wrote")
        self._walk(node, (), file, file.parent, inside or roots)

    def _walk(
        self, node: yaml.Node, path: tuple[str, ...], file: Path | None, base: Path, roots: tuple[Path, ...]
    ) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise InputError(
                "config", file, "is larger or deeper than any config", "give a config.yaml that cdmem wrote"
            )
        if roots and node.tag not in TAGS:
            self._refuse(path, node.tag, "is a YAML tag", file)
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                key = name.value if isinstance(name, yaml.ScalarNode) else "?"
                if roots:
                    self._key(name, key, path, file)
                # What is merged lies on the level of the merge key.
                merged = value.value if key == "<<" and isinstance(value, yaml.SequenceNode) else [value]
                for part in merged:
                    self._walk(part, path if key == "<<" else (*path, key), file, base, roots)
        elif isinstance(node, yaml.SequenceNode):
            for k, value in enumerate(node.value):
                self._walk(value, (*path, str(k)), file, base, roots)
        elif roots:
            self._strange(node, path, file, base, roots)
        elif not TEXT.fullmatch(".".join(path)):
            found = _file(node.value, base)
            if found is not None:
                self.file(found, ".".join(path), ())

    def _key(self, name: yaml.Node, key: str, path: tuple[str, ...], file: Path | None) -> None:
        if key == "<<" and name.tag == "tag:yaml.org,2002:merge":
            return
        if not isinstance(name, yaml.ScalarNode) or name.tag not in TAGS or not KEY.fullmatch(key):
            self._refuse(path, key, "is no plain key", file)
        if key in REFUSED_KEYS:
            self._refuse((*path, key), "...", "says which program may run", file)

    def _strange(
        self, node: yaml.ScalarNode, path: tuple[str, ...], file: Path | None, base: Path, roots: tuple[Path, ...]
    ) -> None:
        """One value of a run folder's config."""
        value, dotted = node.value, ".".join(path)
        if "${" in value or "\\$" in value:
            plain = INTERPOLATION.fullmatch(value)
            if path[-1] == "class_path" or plain is None or TEXT_NAMES & set(plain[1].split(".")):
                self._refuse(path, value, "is more than the value of another plain setting", file)
            return
        if not node.tag.endswith(":str"):
            if path[-1] == "class_path":
                self._refuse(path, value, "is no class", file)
            return
        if path[-1] == "class_path":
            if not trusted(value):
                self._refuse(path, value, "names code that is not cdmem's", file)
            return
        if dotted == "run_dir":
            self._run_dir(value, file, roots)
        if TEXT.fullmatch(dotted):
            return
        included = _file(value, base)
        if included is not None:
            self.file(included, dotted, roots)
        elif value.endswith((".yaml", ".yml", ".json")):
            raise InputError(dotted, value, f"no such file beside {file}", "restore it, or use another config")
        elif not PLAIN.fullmatch(value):
            self._refuse(path, value, "is no plain word", file)
        elif (CLASS.fullmatch(value) or ("." in value and not NUMBER.fullmatch(value))) and not trusted(value):
            self._refuse(path, value, "names code that is not cdmem's", file)

    def _run_dir(self, value: str, file: Path | None, roots: tuple[Path, ...]) -> None:
        place = Path(value).resolve()
        if not self.run_dir_given and not any(place == root.resolve() for root in roots):
            problem = f"is where {file} wants its run written, and it does not lie there"
            raise InputError("run_dir", value, problem, "give your own --run_dir after --config")

    @staticmethod
    def _refuse(path: tuple[str, ...], value: str, problem: str, file: Path | None) -> None:
        shown = value if len(value) <= 80 else f"{value[:77]}..."
        raise InputError(".".join(path) or "config", shown, f"{problem}, in {file} of a run folder", _mend())


def _mend() -> str:
    return f"add {FLAG} if you made that folder or trust who did"


def _compose(text: str) -> yaml.Node | None:
    """The nodes of a YAML text, nothing constructed; None where there are none or it is no YAML."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
