"""``python -m cdmem audit``: what a generator, or a set of images made elsewhere, reproduces of a training set.

Exit code 0: audited; 1: the upper end of the 95 % interval of f_mem is above ``--fail_above``; 2: bad input.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from cdmem.audit.auditor import Auditor
from cdmem.audit.distillation_curve import distillation_record
from cdmem.audit.generators import GivenImages, Subject, stage_subjects, study_subjects
from cdmem.audit.reference_sets import ARRAYS, load_references, match_channels, read_images
from cdmem.audit.result import AuditResult
from cdmem.audit.suite import GROUPS, SLOW_GROUPS, SuiteOptions, build_features
from cdmem.audit.text import print_summary
from cdmem.cli.sample import OneLineParser
from cdmem.data.subset import UNRECORDED, TrainingSet
from cdmem.diffusion.sampling import SEEDS_PER_RUN
from cdmem.errors import InputError
from cdmem.io.paths import usable_path
from cdmem.metrics.quality.features import features_name
from cdmem.models.load import is_model_folder, load_record
from cdmem.models.pipelines import is_pipeline, load_pipeline
from cdmem.run.folder import CONFIG, RunFolder


def parser() -> argparse.ArgumentParser:
    """The options of ``audit``."""
    p = OneLineParser(
        prog="python -m cdmem audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--generator", required=True, help="checkpoint, run folder, diffusers pipeline folder, .npz or folder of images"
    )
    p.add_argument("--training_set", required=True, help="run folder, training_set.json, .npz or folder of images")
    p.add_argument("--held_out", default=None, help="the same forms; images that were not trained on")
    p.add_argument("--teacher", default=None, help="the student's teacher, for the paired comparison")
    p.add_argument("--samples", type=int, default=None, help="images per model; default 2000, or all given images")
    p.add_argument("--seed", type=int, default=0, help="sampling seed; first sample seed is 1,000,000 times this")
    p.add_argument("--nfe", type=int, nargs="+", default=None, help="network evaluations per image, one audit each")
    p.add_argument("--weights", default=None, help="raw or ema_<half-life>; the checkpoint's choice if absent")
    p.add_argument("--out", default=None, help="JSON file to write")
    gate_help = "exit 1 when the upper 95 %% bound of f_mem exceeds this"
    p.add_argument("--fail_above", type=float, default=None, help=gate_help)
    p.add_argument("--threshold", type=float, default=1 / 3, help="memorised means d1/d2 below this")
    p.add_argument("--near_duplicates", default="off", help="auto, off or a ratio: which training images count as one")
    p.add_argument("--flip", action="store_true", help="training mirrored images: a mirrored copy is a copy")
    p.add_argument("--features", nargs="+", default=["pixels"], help="pixels, efficientnet, inception")
    p.add_argument("--metrics", nargs="+", default=list(GROUPS), help=f"of {', '.join((*GROUPS, *SLOW_GROUPS))}")
    p.add_argument("--data_path", default=None, help="where the pixels of a run's data source lie now")
    p.add_argument("--batch_size", type=int, default=256, help="images made at once; changes no number")
    p.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    return p


def _near(value: str) -> str | float:
    if value in ("auto", "off"):
        return value
    try:
        return float(value)
    except ValueError:
        raise InputError("near_duplicates", value, "is no rule", "use auto, off or a ratio such as 0.5") from None


def _check_out(out: Path) -> None:
    """An audit takes minutes: that its result cannot be written is said before."""
    if out.exists() or out.is_symlink():
        raise InputError("out", out, "exists already", "give another --out")
    if out.suffix != ".json":
        raise InputError("out", out, "must end in .json", "e.g. --out audit.json")
    nearest = next(p for p in (out.absolute().parent, *out.absolute().parents) if p.exists())
    try:
        # As the file will be named: the temporary one of RunFolder has nine letters more.
        with tempfile.NamedTemporaryFile(dir=nearest, prefix=f".{out.name}."):
            pass
    except OSError as error:
        raise InputError("out", out, f"cannot be written ({error.strerror})", "give another --out") from None


def check(options: argparse.Namespace) -> None:
    """Refuse impossible settings before anything is read.

    Raises:
        InputError: see the messages.
    """
    if options.samples is not None and options.samples < 2:
        raise InputError("samples", options.samples, "needs at least 2", "1000 or more give a usable interval")
    if options.batch_size < 1:
        raise InputError("batch_size", options.batch_size, "must be at least 1", "e.g. 256")
    if options.fail_above is not None and not 0 <= options.fail_above <= 1:
        raise InputError("fail_above", options.fail_above, "is a fraction", "e.g. 0.01 for 1 %")
    if not 0 < options.threshold <= 1:
        raise InputError("threshold", options.threshold, "must be in (0, 1]", "1/3 is customary")
    if options.nfe is not None:
        if min(options.nfe) < 1:
            raise InputError("nfe", options.nfe, "needs at least one evaluation", "e.g. --nfe 1 2 4")
        options.nfe = sorted(set(options.nfe))  # a repeated one would count twice in Holm's family
    for name in ("generator", "training_set", "held_out", "teacher", "data_path", "out"):
        if getattr(options, name) is not None:
            setattr(options, name, str(usable_path(name, getattr(options, name))))
    for group in options.metrics:
        if group not in (*GROUPS, *SLOW_GROUPS):
            raise InputError("metrics", group, "no such group", f"use {', '.join((*GROUPS, *SLOW_GROUPS))}")
    if options.out is not None:
        _check_out(Path(options.out))
    try:
        torch.zeros(1, device=options.device).cpu()  # the meta device makes zeros, but gives none back
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0].split(". ")[0][:160]
        raise InputError("device", options.device, reason, "use cpu") from None


def _students(folder: Path) -> list[str]:
    """Names of a study's students: the stages beside its teacher."""
    return sorted(
        p.parent.parent.name for p in folder.glob("*/checkpoints/last.ckpt") if p.parent.parent.name != "teacher"
    )


def _is_study(folder: Path) -> bool:
    return (folder / "teacher" / "checkpoints" / "last.ckpt").is_file()


def _images_subject(path: str, training_set: TrainingSet) -> Subject:
    images = match_channels(read_images(path, "generator"), training_set.shape, "generator")
    if len(images) < 2:
        raise InputError("generator", path, f"holds {len(images)} image", "an audit needs at least 2")
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    return Subject("images", "images", "given", GivenImages(images), "given", None, digest)


def _strangers(subjects: Sequence[Subject], training_set: TrainingSet) -> list[str]:
    """A note where the last model was trained on another set: then its evaluations were of that set as well."""
    known = subjects[-1].module.record.training_set
    if known == training_set.hash:
        return []
    if known == UNRECORDED:
        return ["the model does not record what it was trained on"]
    note = f"the checkpoint names another training set ({known[:12]}) than the one audited against"
    return [f"{note}: convergence is unknown" if subjects[-1].role == "student" else note]


def _records(
    options: argparse.Namespace, study: Path, subjects: Sequence[Subject], folder: Path | None = None
) -> dict[str, object]:
    """What is known of the distillation of every student: of the weights and up to the step that are audited."""
    found = {}
    for s in subjects:
        if s.role != "student" or s.name in found:
            continue
        place = folder or study / s.name
        usual = load_record(place).weights if options.weights else s.weights
        if s.weights == usual:
            found[s.name] = distillation_record(RunFolder(place), options.threshold, s.step)
    return found


def _needless(options: argparse.Namespace, what: str, *names: str) -> None:
    """An option that would be ignored is refused: its user expects another number."""
    for name in names:
        if getattr(options, name) is not None:
            raise InputError(name, getattr(options, name), f"the generator is {what}", f"leave --{name} out")


def open_generator(
    options: argparse.Namespace, training_set: TrainingSet
) -> tuple[list[Subject], dict[str, object], list[str]]:
    """The subjects of an audit, what is known of their distillation, and notes."""
    path, nfe = Path(options.generator).expanduser(), options.nfe
    if not path.exists():
        raise InputError("generator", path, "no such file or folder", "give a checkpoint, run, pipeline or images")
    if path.is_dir() and is_pipeline(path):
        _needless(options, "a pipeline", "weights", "teacher")
        samplers, method, digest = load_pipeline(path, nfe)
        return [Subject(path.name, "generator", method, s, "pipeline", None, digest) for s in samplers], {}, []
    if path.is_dir() and _is_study(path):
        _needless(options, "a study, which has its own teacher", "teacher")
        names = _students(path)
        subjects = study_subjects(path, names, nfe, options.device, options.weights)
        notes = _strangers(subjects, training_set)
        return subjects, {} if notes else _records(options, path, subjects), notes
    stage = path.is_dir() and ((path / "checkpoints").is_dir() or (path / "last.ckpt").is_file())
    checkpoint = path.suffix == ".ckpt" or stage or is_model_folder(path)
    if not checkpoint:
        if path.is_file() and path.suffix not in ARRAYS:
            raise InputError("generator", path, "is no checkpoint and no image file", "give a .ckpt, .npz or folder")
        if nfe is not None:
            raise InputError("nfe", nfe, "the images are made already", "leave --nfe out")
        _needless(options, "images", "weights", "teacher")
        note = "images of unknown training: convergence is unknown"
        return [_images_subject(options.generator, training_set)], {}, [note]
    subjects, notes = stage_subjects(path, nfe, options.device, options.weights, options.teacher)
    strangers = _strangers(subjects, training_set)
    notes += strangers
    folder = path if path.is_dir() else path.parent.parent
    record = {}
    if subjects[-1].role != "student" or strangers:
        return subjects, record, notes
    if (folder / CONFIG).is_file() and (folder / "evaluations").is_dir():
        record = _records(options, folder.parent, subjects, folder)
    else:
        notes.append("no evaluations along the distillation: convergence is unknown")
    return subjects, record, notes


def gate(result: AuditResult, fail_above: float | None) -> list[str]:
    """Names of the models whose upper bound of f_mem is above the limit. Teachers beside a student do not count."""
    if fail_above is None:
        return []
    judged = [m for m in result.models if m["role"] != "teacher"] or result.models
    return [f"{m['name']} {m['nfe']} NFE" for m in judged if m["f_mem"]["ci95"][1] > fail_above]


def run_audit(args: Sequence[str]) -> int:
    """Audit, print, write, and say by the exit code whether the gate holds."""
    options = parser().parse_args(args)
    options.near_duplicates = _near(options.near_duplicates)
    check(options)
    extractors: list[nn.Module] = [build_features(name) for name in dict.fromkeys(options.features)]
    training_set, notes = load_references(options.training_set, options.held_out, options.flip, options.data_path)
    subjects, distillation, more = open_generator(options, training_set)
    given = [s.sampler for s in subjects if isinstance(s.sampler, GivenImages)]
    samples = options.samples or (len(given[0].images) if given else 2000)
    if given and samples > len(given[0].images):
        raise InputError("samples", samples, f"only {len(given[0].images)} images are given", "ask for fewer")
    if not given and samples > SEEDS_PER_RUN:
        problem = f"a sampling seed has {SEEDS_PER_RUN:,} samples; more would repeat those of the next seed"
        raise InputError("samples", samples, problem, "ask for fewer, under several --seed")
    names = [features_name(m) for m in extractors]
    suite = SuiteOptions(options.threshold, options.near_duplicates, names, options.metrics)
    place = {"batch_size": options.batch_size, "device": options.device, "progress": not options.quiet}
    auditor = Auditor(training_set, samples, options.seed, suite, features=extractors, **place)
    result = auditor.run(subjects, distillation)
    result.notes += [*notes, *more]
    failed = gate(result, options.fail_above)
    print_summary(result)
    if options.fail_above is not None:
        limit = f"{100 * options.fail_above:g} %"
        outcome = f"FAILED, {', '.join(failed)} may exceed {limit}" if failed else f"passed, all below {limit}"
        print(f"\ngate: {outcome}")
    if options.out is not None:
        out = Path(options.out)
        record = json.loads(result.to_json()) | {
            "gate": {"fail_above": options.fail_above, "failed": failed},
            "command": ["python", "-m", "cdmem", "audit", *args],
        }
        RunFolder(out.parent).write_json(out.name, record)
        print(f"\nwritten: {out}")
    return 1 if failed else 0
