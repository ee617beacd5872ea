"""How far apart the perceptual hash holds copies of an image, and different images: what NEAR in
rarl/prepare/fingerprint.py was chosen by.

    python bench/near_copies.py FOLDER_OF_IMAGES
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from rarl.prepare.fingerprint import NEAR, image_print

EVERY = 3  # of the images is copied


def compressed(image: Image.Image) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=30)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


def cropped(image: Image.Image) -> Image.Image:
    x, y = image.width // 100, image.height // 100
    return image.crop((x, y, image.width - x, image.height - y))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 30": compressed,
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "224x224": lambda image: image.resize((224, 224)),
    "20 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "30 % more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "1 % cut off each side": cropped,
}


def main() -> None:
    images = [Image.open(path).convert("RGB") for path in sorted(Path(sys.argv[1]).iterdir())]
    looks = np.stack([image_print(b"", image).look for image in images])
    apart = np.bitwise_count(looks[:, None] ^ looks[None]).sum(-1).astype(int)
    np.fill_diagonal(apart, 256)
    print(
        f"{len(images)} images; the nearest different ones differ in {apart.min()} of 256 bits; "
        f"near is up to {NEAR}"
    )
    for name, change in CHANGES.items():
        copies = np.stack([image_print(b"", change(image)).look for image in images[::EVERY]])
        bits = np.bitwise_count(copies ^ looks[::EVERY]).sum(-1)
        found = 100 * np.mean(bits <= NEAR)
        print(
            f"{name:22} median {np.median(bits):3.0f}  largest {bits.max():3}  found {found:.0f} %"
        )


if __name__ == "__main__":
    main()
