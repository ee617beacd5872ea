"""Lets a CUDA-built torchvision be imported beside a CPU-only torch.

The registry's x86-64 torchvision wheels are CUDA builds: their compiled operators do not load
beside a CPU torch, and `import torchvision` dies with "operator torchvision::nms does not exist".
Nothing in RARL, transformers' Qwen2-VL code or vLLM calls those operators, so declaring the two
schemas that torchvision looks up at import is enough.

`setup/environment.py` copies this file into site-packages together with a `.pth` file that imports
it, and does so only where the import is broken. It must act in every process, also in those that
vLLM and Ray spawn, hence the `.pth`; it must cost nothing where torchvision is never imported,
hence the lazy finder instead of an `import torch` here.
"""

import sys
from importlib.abc import MetaPathFinder

SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class DeclareSchemas(MetaPathFinder):
    """Declares the operators the first time anybody imports torchvision, then steps out of the
    way."""

    def find_spec(self, fullname, path=None, target=None):  # type: ignore[no-untyped-def]
        if fullname != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        if torch.version.cuda is None:
            for name, schema in SCHEMAS.items():
                torch.library.define(name, schema)
        return None


sys.meta_path.insert(0, DeclareSchemas())
