"""The registry of published layouts: one file per source, see docs/data.md for how to add one."""

from rarl.prepare.sources.folder import read_folder
from rarl.prepare.sources.medxpertqa import read_medxpertqa
from rarl.prepare.sources.omnimedvqa import read_omnimedvqa
from rarl.prepare.sources.path_vqa import read_path_vqa
from rarl.prepare.sources.pmc_vqa import read_pmc_vqa
from rarl.prepare.sources.registry import Source
from rarl.prepare.sources.slake import read_slake
from rarl.prepare.sources.vqa_rad import read_vqa_rad

ALL = (
    Source("vqa-rad", read_vqa_rad, "CC0-1.0", "flaviagiammarino/vqa-rad", takes=("phrases",)),
    Source("slake", read_slake, "CC-BY-4.0", "BoKelvin/SLAKE", takes=("language",)),
    Source("path-vqa", read_path_vqa, "MIT", "flaviagiammarino/path-vqa"),
    Source(
        "pmc-vqa", read_pmc_vqa, "see its card on the hub", "RadGenome/PMC-VQA", takes=("version",)
    ),
    Source("omnimedvqa", read_omnimedvqa, "see its card on the hub", "foreverbeliever/OmniMedVQA"),
    Source("medxpertqa", read_medxpertqa, "MIT", "TsinghuaC3I/MedXpertQA", takes=("images",)),
    Source("folder", read_folder, "your own", None),
)
SOURCES = {source.name: source for source in ALL}
