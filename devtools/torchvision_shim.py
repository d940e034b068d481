"""Lets a torchvision that was built for CUDA be imported beside a torch without CUDA.

Such a torchvision cannot load its compiled half, and then fails because two operators are unknown to torch. Declaring
them first is enough: image transforms work, the operators themselves (nms, roi_align) do not. `dev.py` copies this file
into the site-packages of its own environment, where torchvision fails to import without it, and a .pth file beside it
imports it at start, before torch.
"""

import sys
from importlib.abc import MetaPathFinder

_LIBRARIES = []


class DeclareOperators(MetaPathFinder):
    """Waits for the first import of torchvision, declares the operators, and steps aside."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _LIBRARIES.append(library)  # an unreferenced library takes its operators with it
        return None


sys.meta_path.insert(0, DeclareOperators())
