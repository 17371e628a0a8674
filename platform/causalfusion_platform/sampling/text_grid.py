"""Pictures of text and images: samples beside their prompts, and captions beside their images."""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..data.pixels import to_pixels

_GAP = 6
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
_TITLE_FONT = 16
_TEXT_WIDTH = 330
_LARGEST_FONT = 24


def prompt_grid(prompts: Sequence[str], images: Tensor, *, cell: int = 64) -> Image.Image:
    """Draw a row for each prompt: its text, then its samples.

    Args:
        prompts: n texts. Long ones are cut.
        images: (n · k, channels, height, width) in [−1, 1], k samples of each prompt in a row.
        cell: side of one drawn sample, in pixels.
    """
    tiles = _tiles(images, cell)
    columns = len(tiles) // max(len(prompts), 1)
    rows = [tiles[row * columns : (row + 1) * columns] for row in range(len(prompts))]
    return _draw(prompts, rows, cell, text_first=True)


def caption_grid(images: Tensor, captions: Sequence[str], *, cell: int = 64) -> Image.Image:
    """Draw a row for each image (B, channels, height, width) in [−1, 1]: the image, then its caption."""
    return _draw(captions, [[tile] for tile in _tiles(images, cell)], cell, text_first=False)


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures one below the other."""
    canvas = Image.new("RGB", (max(each.width for each in pictures), sum(each.height for each in pictures)), _PAPER)
    top = 0
    for each in pictures:
        canvas.paste(each, (0, top))
        top += each.height
    return canvas


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures one beside the other."""
    canvas = Image.new("RGB", (sum(each.width for each in pictures), max(each.height for each in pictures)), _PAPER)
    left = 0
    for each in pictures:
        canvas.paste(each, (left, 0))
        left += each.width
    return canvas


def titled(title: str, picture: Image.Image) -> Image.Image:
    """Return a picture below its title. It becomes wider if the title is."""
    font = ImageFont.load_default(size=_TITLE_FONT)
    width = max(picture.width, round(font.getlength(title)) + 2 * _GAP)
    canvas = Image.new("RGB", (width, picture.height + 2 * _TITLE_FONT), _PAPER)
    ImageDraw.Draw(canvas).text((_GAP, _TITLE_FONT), title, fill=_INK, font=font, anchor="lm")
    canvas.paste(picture, (0, 2 * _TITLE_FONT))
    return canvas


def _tiles(images: Tensor, cell: int) -> list[Image.Image]:
    pixels = to_pixels(images)
    pixels = pixels[:, :1].expand(-1, 3, -1, -1) if pixels.shape[1] < 3 else pixels[:, :3]
    arrays = rearrange(pixels, "b c h w -> b h w c").numpy()
    return [Image.fromarray(array).resize((cell, cell), Image.Resampling.NEAREST) for array in arrays]


def _draw(
    texts: Sequence[str], rows: Sequence[Sequence[Image.Image]], cell: int, *, text_first: bool
) -> Image.Image:
    size = min(max(cell // 4, 12), _LARGEST_FONT)
    font = ImageFont.load_default(size=size)
    pitch = cell + _GAP
    columns = max(map(len, rows), default=0)
    tiles_width = columns * pitch
    canvas = Image.new("RGB", (_TEXT_WIDTH + tiles_width + 2 * _GAP, len(rows) * pitch + _GAP), _PAPER)
    pen = ImageDraw.Draw(canvas)
    text_left, tiles_left = (_GAP, _TEXT_WIDTH) if text_first else (tiles_width + 2 * _GAP, _GAP)
    for number, (text, tiles) in enumerate(zip(texts, rows, strict=True)):
        top = _GAP + number * pitch
        lines = _wrapped(text, font, max(3, cell // (size + 6)))
        pen.multiline_text((text_left, top + cell / 2), lines, fill=_INK, font=font, anchor="lm")
        for column, tile in enumerate(tiles):
            canvas.paste(tile, (tiles_left + column * pitch, top))
    return canvas


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, most: int) -> str:
    """Break a text into lines that fit, at most so many. Of a longer one the end is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > _TEXT_WIDTH - 2 * _GAP and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > most:
        last = lines[most - 1]
        while " " in last and font.getlength(f"{last} …") > _TEXT_WIDTH - 2 * _GAP:
            last = last.rpartition(" ")[0]
        lines = [*lines[: most - 1], f"{last} …"]
    return "\n".join(lines)
