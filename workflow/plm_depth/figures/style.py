"""How figures look: sizes, fonts, colours, words. Nothing here knows a model; families take colours by their order."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import Normalize, to_hex, to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from plm_depth.figures.select import Model

# Okabe and Ito's palette (jfly.uni-koeln.de/color), told apart with every common colour vision. Yellow comes last,
# because it is weak on white; dark grey stands for black, which has no darker shades.
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d", "#f0e442")
GREY, LIGHT_GREY = "#5A5A5A", "#C8C8C8"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
FONT, FONT_SIZE, TITLE_SIZE = "DejaVu Sans", 9.0, 10.5  # DejaVu comes with matplotlib: the same on every machine
WIDTH = 10.0  # inches, of a usual figure

RC = {
    "font.family": FONT,
    "font.size": FONT_SIZE,
    "text.parse_math": False,  # names of models are names, whatever signs they hold
    "axes.titlesize": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "legend.fontsize": FONT_SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "ytick.minor.size": 1.5,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "svg.fonttype": "path",  # letters as shapes: the same picture whether or not a reader has the font
    "svg.hashsalt": "plm-depth",  # element names that do not change from run to run
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def family_colours(models: Sequence[Model]) -> dict[str, str]:
    """Return the colour of each family, by the order in which families first appear; from the ninth they repeat."""
    families = dict.fromkeys(model.family for model in models)
    return {family: OKABE_ITO[i % len(OKABE_ITO)] for i, family in enumerate(families)}


def shades(colour: str, n: int) -> list[str]:
    """Return ``n`` shades of a colour, from light (shallow models) to dark (deep ones)."""
    if n == 1:
        return [colour]
    return [lighter(colour, by) if by >= 0 else darker(colour, -by) for by in np.linspace(0.5, -0.55, n)]


def lighter(colour: str, by: float) -> str:
    """Return a colour mixed with white, ``by`` 0 (unchanged) to 1 (white)."""
    return to_hex(np.array(to_rgb(colour)) * (1 - by) + by)


def darker(colour: str, by: float) -> str:
    """Return a colour mixed with black, ``by`` 0 (unchanged) to 1 (black)."""
    return to_hex(np.array(to_rgb(colour)) * (1 - by))


def by_depth(models: Sequence[Model]) -> list[Model]:
    """Return models from shallow to deep, equal depths in their order; in their order if a depth is not known."""
    if any(model.n_blocks is None for model in models):
        return list(models)
    return sorted(models, key=lambda model: model.n_blocks)


def model_looks(models: Sequence[Model]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each model: hue by family, lightness and marker by depth within the family."""
    looks = {}
    for family, colour in family_colours(models).items():
        members = by_depth([model for model in models if model.family == family])
        for place, (model, shade) in enumerate(zip(members, shades(colour, len(members)), strict=True)):
            looks[model.model] = (shade, MARKERS[place % len(MARKERS)])
    return looks


def effect_norm() -> Normalize:
    """Return the colour scale of effect matrices, 0 to 1, larger values clipped at the top of the scale."""
    return Normalize(vmin=0.0, vmax=1.0, clip=True)


def name_of(model: Model) -> str:
    """Return how a model is called in a legend: its name, and its blocks unless they are unknown or in the name."""
    if model.n_blocks is None or f"{model.n_blocks} block" in model.display_name:
        return model.display_name
    return f"{model.display_name}, {model.n_blocks}\N{NO-BREAK SPACE}block{'s' if model.n_blocks > 1 else ''}"


def objective_words(objective: str, noise_t: float) -> str:
    """Return how an objective and its primary input are called in a panel's heading."""
    if objective == "ar":
        return "autoregressive, N to C"
    if noise_t == 0:
        return f"{'masked' if objective == 'mlm' else objective} model, nothing hidden"
    if objective == "mlm":
        return f"masked, {100 * noise_t:.3g} % hidden"
    return "diffusion, mean over noise"


def text_width(text: str, size: float = FONT_SIZE, weight: str = "normal") -> float:
    """Return the width of one line of text, in inches."""
    width, _, _ = text_to_path.get_text_width_height_descent(
        text, FontProperties(family=FONT, size=size, weight=weight), ismath=False
    )
    return width / 72


def wrapped(text: str, width: float, size: float = FONT_SIZE, weight: str = "normal") -> str:
    """Return text broken into lines no wider than ``width`` inches: at blanks, else after - _ / . , else anywhere."""
    lines, line = [], ""
    for word in _pieces(text):
        if text_width((line + word).rstrip(), size, weight) <= width:
            line += word
            continue
        if line.strip():
            lines.append(line.rstrip())
        line = word
        while text_width(line.rstrip(), size, weight) > width and len(line) > 1:
            n = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or text_width(line[:n], size, weight) <= width)
            lines.append(line[:n])
            line = line[n:]
    return "\n".join([*lines, line.rstrip()])


def _pieces(text: str) -> list[str]:
    """Return text cut after each blank and each of - _ / . that stands inside a word."""
    pieces, start = [], 0
    for place, letter in enumerate(text):
        inner = letter in "-_/" and 0 < place < len(text) - 1 and text[place - 1] != " " and text[place + 1] != " "
        if letter == " " or inner:
            pieces.append(text[start : place + 1])
            start = place + 1
    return [*pieces, text[start:]]
