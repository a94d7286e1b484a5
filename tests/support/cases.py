"""Commands with something broken about them: what :class:`support.fuzz.Sandbox` attempts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from support.breaking import (
    SCALARS,
    VALUES,
    WORDS,
    array_files,
    changed,
    changed_arrays,
    changed_record,
    checkpoints,
    damaged,
    dumped,
    leaves,
    nudged,
    pictures,
    spoilt,
)
from support.breaking import at as value_at
from support.fuzz import DATA, STUDENT, STUDY, TEACHER

Case = tuple[list[str], dict[str, bytes | None]]
STUDENT_STAGE = {**TEACHER, "model": STUDENT}
TRAIN = ("fit", "validate", "test", "predict")
NEW = ["--run_dir", "out"]
CHECKPOINT = "checkpoints/last.ckpt"
TEACHER_FILES = [f"run/teacher/{name}" for name in (CHECKPOINT, "training_set.json", "config.yaml")]
STUDENT_FILES = [name.replace("teacher", "student") for name in TEACHER_FILES]
SUMMARY = "run/audit/summary.json"
MINOR = ["metrics.jsonl", "onset.json", "finished.json", "environment.json", "config.yaml"]
RECORDS = [SUMMARY, *(f"run/{stage}/{name}" for stage in ("teacher", "student") for name in MINOR)]
ROWS = ["run/audit/student_consistency_nfe=1.npz", "run/audit/teacher_heun_nfe=5.npz", "run/audit/pictures.npz"]
ROWS += ["run/samples/student_consistency_nfe=1.npz", "run/samples/teacher_heun_nfe=5.npz"]
EVALUATIONS = [f"run/student/evaluations/step=0000000{k}_nfe=1.npz" for k in range(3)]
EXPORTED = [f"exported/{name}" for name in ("cdmem.json", "model_index.json", "unet/config.json")]
EXPORTED += ["exported/scheduler/scheduler_config.json", "exported/unet/diffusion_pytorch_model.safetensors"]
SET = ["training_set.json", "config.yaml", "environment.json"]
FAST = ["--metrics", "memorization", "--out", "out.json", "--quiet"]
AUDIT = ["audit", "--samples", "8", *FAST, "--generator"]
FIT = ["fit", "--config", "teacher.yaml", *NEW]
SAMPLE = ["sample", "--samples", "2", "--out", "out.npz", "--checkpoint"]
DISTIL = ["fit", "--config", "student.yaml", *NEW]
# Commands with the files that each reads.
READERS: list[tuple[list[str], list[str]]] = [
    (["report", "run"], [SUMMARY, SUMMARY, *RECORDS, *ROWS, "run/config.yaml", "run/training_set.json"]),
    (["report", "run", "run", "--out", "out.html"], [SUMMARY, *RECORDS]),
    (["export", "--checkpoint", "run/student", "--out", "out"], [*STUDENT_FILES, STUDENT_FILES[0], SUMMARY]),
    (["export", "--checkpoint", TEACHER_FILES[0], "--out", "out", "--audit", SUMMARY], [TEACHER_FILES[0], SUMMARY]),
    ([*SAMPLE, "run/student"], STUDENT_FILES[:1]),
    ([*SAMPLE, TEACHER_FILES[0]], TEACHER_FILES[:1]),
    ([*SAMPLE, "exported"], EXPORTED),
    ([*AUDIT, "run", "--training_set", "run"], [*TEACHER_FILES, *STUDENT_FILES, *EVALUATIONS, *RECORDS[1:]]),
    ([*AUDIT, "run/student", "--training_set", "run/teacher"], [*STUDENT_FILES, *EVALUATIONS, TEACHER_FILES[1]]),
    ([*AUDIT, "images.npz", "--training_set", "images.npy"], ["images.npz", "images.npy"]),
    (["audit", "--generator", "images.npz", "--training_set", "pictures", "--held_out", "run", *FAST],
     ["images.npz", "pictures/0.png", "run/training_set.json"]),
    (["audit", "--generator", "pictures", "--training_set", TEACHER_FILES[1], *FAST],
     ["pictures/0.png", TEACHER_FILES[1]]),
    ([*AUDIT, "exported", "--training_set", "run"], [*EXPORTED, "run/training_set.json"]),
    (["plan", "--config", "run/teacher/config.yaml", "--allow_code"], ["run/teacher/config.yaml"]),
    (["plan", "--config", "student.yaml"], [TEACHER_FILES[0]]),
    (DISTIL, TEACHER_FILES),
    ([*DISTIL, "--model.teacher", "exported_teacher"],
     [n.replace("ed/", "ed_teacher/") for n in (EXPORTED[0], *EXPORTED[2::2])]),
    ([*FIT, "--ckpt_path", TEACHER_FILES[0]], TEACHER_FILES),
    (["validate", "--config", "teacher.yaml", *NEW, "--ckpt_path", TEACHER_FILES[0]], TEACHER_FILES[:1]),
    (["fit", "--config", "run/teacher/config.yaml", "--allow_code"], [*TEACHER_FILES, "run/teacher/finished.json"]),
    (["study", "--config", "study.yaml", "--run_dir", "run"],
     [*TEACHER_FILES, *STUDENT_FILES, *RECORDS, "run/config.yaml"]),
    (["theory", "bridge", "run", "--out", "out", "--quiet"],
     [*TEACHER_FILES, STUDENT_FILES[0], "run/training_set.json"]),
    (["theory", "decomposition", "--run=run", "--out", "out", "--quiet"], [TEACHER_FILES[0], "run/training_set.json"]),
]  # fmt: skip
LABORATORIES: dict[str, dict[str, object]] = {
    "two-gaussians": {"n": [4], "widths": [4], "steps_per_point": 3, "points": 3, "seeds": 1, "level": 0.1, "lr": 0.01},
    "edge": {
        "mixture": {"n": 60, "d": 50, "k": 12, "seeds": 1},
        "training": {"steps": 100},
        "sweep": {"n": [30], "d": [30]},
        "images": {"n": 40},
    },
    "random-features": {"d": 30, "psi_p": 32.0, "t": 0.1, "activation": "tanh", "sigma": "isotropic", "levels": [0.5]},
    "decomposition": {"run": "run", "n": 32, "samples": 8, "steps": 5, "scales": [1.0, 2.0], "student": None},
    "bridge": {"run": "run", "sigmas": [0.2, 0.5], "points": 4, "share": 0.9, "samples": 4, "jacobian_sigma": 0.5},
}
OPTIONS = {
    "audit": "generator training_set held_out teacher samples seed nfe weights out fail_above gate threshold "
    "near_duplicates flip features metrics data_path batch_size device quiet resolution crop grayscale skip_unreadable",
    "sample": "checkpoint samples classes nfe weights seed batch_size device out",
    "export": "checkpoint out weights audit licence",
    "report": "out runs",
    "plan": "config devices tflops teacher_config json sweep data.n seed trainer.devices trainer.num_nodes",
    "study": "config run_dir seed sweep teacher.model.sampling.points student.model.method.mu data.n data.duplication "
    "audit.nfe audit.samples audit.device audit.features audit.near_duplicates threads wandb "
    "student teacher.config students",
    "theory": "config out overwrite quiet seed n samples run student levels mixture.n images training.steps",
}


@st.composite
def configs(draw: st.DrawFn) -> Case:
    """A broken config for training, planning or a study."""
    command = draw(st.sampled_from([*TRAIN, "fit", "fit", "plan", "study", "study", "plan study"]))
    if "study" in command:
        content = draw(changed({**STUDY, "data": dict(DATA)}))
        return [command.split()[0], "--config", "study.yaml", *([] if " " in command else NEW)], {
            "study.yaml": dumped(content)
        }
    name, base = draw(st.sampled_from([("teacher.yaml", TEACHER), ("student.yaml", STUDENT_STAGE)]))
    return [command, "--config", name, *([] if command == "plan" else NEW)], {name: dumped(draw(changed(base)))}


@st.composite
def subsets(draw: st.DrawFn) -> Case:
    """A broken description of the training set only; one draw in four of the user's own files."""
    base = DATA | draw(st.sampled_from([{}, {}, {}, {"source": "folder", "path": "pictures", "n": 2, "held_out": 1},
        {"source": "array", "path": "images.npz", "n": 4, "held_out": 2, "classes": None},
        {"duplication": "copies.npy"}, {"duplication": {"power_law": 1.0, "max_copies": 4}, "balance": True},
        {"held_out": 4, "held_out_path": "images.npz", "resolution": 8, "crop": 8, "grayscale": True, "flip": True},
    ]))  # fmt: skip
    return FIT, {"teacher.yaml": dumped({**TEACHER, "data": draw(changed(base))})}


@st.composite
def texts(draw: st.DrawFn) -> Case:
    """Configs that are odd as text: tags, anchors, aliases, interpolations, several documents, bombs; or damaged."""
    name, commands = draw(st.sampled_from([
        ("teacher.yaml", [FIT, ["plan", "--config", "teacher.yaml"], ["study", "--config", "study.yaml", *NEW]]),
        ("student.yaml", [DISTIL, ["plan", "--config", "student.yaml"]]),
        ("study.yaml", [["study", "--config", "study.yaml", *NEW], ["plan", "--config", "study.yaml"]]),
        ("edge.yaml", [["theory", "two-gaussians", "--config", "edge.yaml", "--out", "out", "--quiet"]]),
    ]))  # fmt: skip
    content = Path(name).read_bytes()
    return draw(st.sampled_from(commands)), {name: draw(st.one_of(spoilt(content), spoilt(content), damaged(content)))}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


@st.composite
def overrides(draw: st.DrawFn) -> Case:
    """Broken options of every command."""
    if draw(st.booleans()):
        command, base = draw(st.sampled_from([(FIT, TEACHER), (DISTIL, STUDENT_STAGE)]))
        path = draw(st.sampled_from([p for p in leaves(base) if all(isinstance(k, str) for k in p)]))
        key = "--" + ".".join(path).replace("init_args.", draw(st.sampled_from(["", "init_args."])))
        usual = value_at(base, path)
    else:
        command = draw(st.sampled_from([*(c for c, _ in READERS), ["wandb-workspace", "--project", "x"]]))
        known = [o.removeprefix("--") for o in command if o.startswith("--")] + OPTIONS.get(command[0], "").split()
        key = "--" + draw(st.sampled_from([*known, "nothing", "x y", "", "model"]))
        usual = draw(st.sampled_from([1, 0.5, "x"]))
    value = draw(st.one_of(nudged(usual), nudged(usual), st.sampled_from(WORDS), VALUES, SCALARS))
    text = draw(st.sampled_from([_text(value), str(value)]))
    return [*command, *draw(st.sampled_from([[f"{key}={text}"], [key, text], [key, text, text], [key]]))], {}


@st.composite
def files(draw: st.DrawFn) -> Case:
    """Damaged files under commands that read them."""
    command, read = draw(st.sampled_from(READERS))
    name = draw(st.sampled_from(read))
    return command, {name: draw(damaged(Path(name).read_bytes()))}


@st.composite
def records(draw: st.DrawFn) -> Case:
    """Records of a run folder, or of an exported one, that are still JSON or YAML, with changed values."""
    command, read = draw(st.sampled_from(READERS))
    name = draw(st.sampled_from([n for n in read if n.endswith((".json", ".jsonl", ".yaml"))] or [SUMMARY]))
    return command, {name: draw(changed_record(name, Path(name).read_bytes()))}


@st.composite
def media(draw: st.DrawFn) -> Case:
    """Arrays and pictures of odd types, shapes, modes and sizes, wherever they are read."""
    data = [*FIT, "--data.classes=null", "--data.n=2", "--data.held_out=1", "--data.duplication=null"]
    command, name = draw(st.sampled_from([
        ([*data, "--data.source=array", "--data.path=images.npz"], "images.npz"),
        ([*data, "--data.source=array", "--data.path=images.npy", "--data.resolution=4"], "images.npy"),
        ([*data, "--data.held_out_path=images.npz", "--data.grayscale=true"], "images.npz"),
        ([*data, "--data.source=folder", "--data.path=pictures"], "pictures/0.png"),
        ([*data, "--data.held_out_path=pictures", "--data.grayscale=true"], "pictures/1.png"),
        ([*FIT, "--data.duplication=copies.npy"], "copies.npy"),
        ([*FIT, "--data.duplication=copies.json"], "copies.json"),
        *((command, name) for command, read in READERS for name in read if name.endswith((".npz", ".npy", ".png"))),
    ]))  # fmt: skip
    content = Path(name).read_bytes()
    if name.endswith(".png"):
        return command, {name: draw(pictures(content))}
    if name.endswith(".json"):
        value = draw(st.one_of(VALUES, st.lists(st.integers(-1, 10), min_size=8, max_size=8)))
        return command, {name: _text(value).encode("utf-8", "surrogatepass")}
    own = changed_arrays(content) if name.endswith(".npz") else array_files()
    return command, {name: draw(st.one_of(array_files(), own))}


@st.composite
def models(draw: st.DrawFn) -> Case:
    """Checkpoints that are whole archives, with other things in them."""
    command, name = draw(st.sampled_from([(c, n) for c, read in READERS for n in read if n.endswith(".ckpt")]))
    return command, {name: draw(checkpoints(Path(name).read_bytes()))}


@st.composite
def theories(draw: st.DrawFn) -> Case:
    """Broken settings of the laboratories."""
    name = draw(st.sampled_from(sorted(LABORATORIES)))
    settings, command = LABORATORIES[name], ["theory", name, "--out", "out", "--quiet"]
    if draw(st.booleans()):
        return [*command, "--config", "edge.yaml"], {"edge.yaml": dumped(draw(changed(settings)))}
    key = draw(st.sampled_from(sorted(settings)))
    value = draw(st.one_of(nudged(settings[key]), VALUES))
    return [*command, *(f"--{k}={_text(v)}" for k, v in settings.items() if k != key), f"--{key}={_text(value)}"], {}


KINDS: dict[str, tuple[Callable[[], st.SearchStrategy[Case]], int]] = {
    "configs": (configs, 400),
    "subsets": (subsets, 300),
    "texts": (texts, 200),
    "overrides": (overrides, 400),
    "files": (files, 200),
    "records": (records, 150),
    "media": (media, 150),
    "models": (models, 100),
    "theories": (theories, 100),
}
