"""Several images in one, side by side, as MIA-DPO's collages (arXiv 2410.17637) are. Numpy and PIL, no torch."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diagnostics.media import Media, of_frames

CELL, MARGIN, FONT, INDENT = 448, 40, 36, 20  # pixels, of the authors' released notebook
COLUMNS = {2: 2, 3: 3, 4: 2, 6: 3, 9: 3}  # of so many images

Box = tuple[float, float, float, float]  # left, top, right, bottom


def collage(images: Sequence[Media]) -> Media:
    """Two, three, four, six or nine images on white, each in a square of 448 pixels at its left upper corner with its
    shape kept, under its name ("Image1" ...) in a margin of 40. The letters are PIL's own, the authors' are Arial."""
    boxes = cells(len(images))
    width, height = (int(max(box[k] for box in boxes)) for k in (2, 3))
    whole = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(FONT)
    for k, (item, box) in enumerate(zip(images, boxes, strict=True)):
        left, top = int(box[0]), int(box[1])
        picture = Image.fromarray(item.frames()[0])
        scale = CELL / max(picture.size)
        size = tuple(max(1, int(side * scale)) for side in picture.size)
        whole.paste(picture.resize((size[0], size[1]), Image.Resampling.LANCZOS), (left, top))
        pen.text((left + INDENT, top - MARGIN), f"Image{k + 1}", fill="black", font=font)
    return of_frames(np.asarray(whole), kind="image", source=f"a collage of {len(images)} images")


def cells(count: int) -> list[Box]:
    """Where each of so many images has its square, in pixels."""
    step, found = CELL + MARGIN, []
    for k in range(count):
        row, column = divmod(k, COLUMNS[count])
        left, top = column * step, row * step + MARGIN
        found.append((left, top, left + CELL, top + CELL))
    return found
