"""`rarl export` and `rarl push`: a run's model for other programs, and for other people."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rarl.adapters.merging import CONFIG
from rarl.adapters.origin import FILE, WEIGHTS, base_name, read_origin, weights_hash
from rarl.config import load_config
from rarl.display import Display
from rarl.errors import UserError
from rarl.files import replacing_folder
from rarl.sharing.card import card_of
from rarl.sharing.members import require_new
from rarl.system.models import find_adapter, resolve_model
from rarl.training.run_dir import RunDir

CARD = "README.md"
WEIGHT_TYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Tuned:
    """A run directory or PEFT folder: its adapter's folder, and what its base is called where it
    was trained, which may be a path."""

    path: Path
    adapter: Path
    base: str


def read_tuned(target: str) -> Tuned:
    """Finds the adapter of a run directory or a PEFT folder. Raises UserError."""
    adapter = find_adapter(target, named=target)
    path = Path(target).expanduser().resolve()
    path = path.parent if path.name == "adapter" else path
    held = RunDir(path).config
    if held.is_file():
        return Tuned(path, adapter, load_config(held).model.path)
    base = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    return Tuned(path, adapter, str(base))


def export(target: str, out: Path, dtype: str, gguf: bool, display: Display) -> None:
    """Writes the base with the adapter merged in, its processor and its card into the folder `out`,
    whole or not at all; then, if asked for, the same as GGUF. Raises UserError."""
    if dtype not in WEIGHT_TYPES:
        raise UserError(f"--dtype {dtype}: unknown; known are {', '.join(WEIGHT_TYPES)}")
    require_new(out, "--merged")
    tuned = read_tuned(target)
    base = resolve_model(tuned.base, f"the base of {target}")
    origin = read_origin(tuned.adapter)
    if origin and origin.base_sha256 and origin.base_sha256 != weights_hash(Path(base)):
        raise UserError(
            f"{target}: its base {tuned.base} has other weights than the adapter was trained on; "
            "bring back the model as it was"
        )
    converter = None
    # They bring PyTorch, which a mistake need not wait for.
    if gguf:
        from rarl.sharing.export import find_converter

        converter = find_converter()
    from rarl.sharing.export import write_gguf, write_model

    merging = display.working(f"merging {tuned.adapter} into {tuned.base}")
    with merging, replacing_folder(out) as temporary:
        lost = write_model(base, tuned.adapter, temporary, dtype)
        card = card_of(tuned.path, tuned.adapter, tuned.base, out.name, dtype, lost)
        (temporary / CARD).write_text(card.render(), encoding="utf-8")
        if (tuned.adapter / FILE).is_file():
            shutil.copyfile(tuned.adapter / FILE, temporary / FILE)
    told = f", whose rounding loses {100 * lost:.1f} % of what the adapter changes" if lost else ""
    display.note(f"model {out} in {dtype}{told}; its card {out / CARD}")
    if converter is not None:
        with display.working("converting to GGUF"):
            made = write_gguf(converter, out, out.name, dtype)
        display.note(f"GGUF {' and '.join(map(str, made))}")


def push(target: str, repo: str, public: bool, display: Display) -> None:
    """Uploads an exported model, or the adapter of a run directory or PEFT folder with its card, to
    a repository of a hub, which is made if it is not there. Raises UserError."""
    from rarl.sharing.hub import require_token, upload

    require_token()
    folder = Path(target).expanduser()
    if (folder / "config.json").is_file() and not (folder / CONFIG).is_file():
        if not (folder / CARD).is_file():
            advice = "`rarl export RUN --merged DIR` makes one"
            raise UserError(f"{target}: a model without a card ({CARD}); {advice}")
        display.note(f"uploading {target} …")
        address = upload(folder, repo, private=not public)
    else:
        tuned = read_tuned(target)
        with TemporaryDirectory(prefix="rarl-push-") as temporary:
            write_adapter(tuned, Path(temporary), repo.rpartition("/")[2])
            display.note(f"uploading {tuned.adapter} …")
            address = upload(Path(temporary), repo, private=not public)
    display.note(
        f"uploaded to {address}, which is {'public' if public else 'private if it is new'}"
    )


def write_adapter(tuned: Tuned, folder: Path, title: str) -> None:
    """Writes the adapter as others are to have it: weights, configuration, origin and card, without
    a path of this machine."""
    for name in (WEIGHTS, FILE):
        if (tuned.adapter / name).is_file():
            shutil.copyfile(tuned.adapter / name, folder / name)
    config = json.loads((tuned.adapter / CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name(tuned.base)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    card = card_of(tuned.path, tuned.adapter, tuned.base, title)
    (folder / CARD).write_text(card.render(), encoding="utf-8")
