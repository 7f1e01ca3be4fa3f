"""Draw the toy dishes: a table seen from above, a round plate, a dish in its middle, a garnish on its rim.

Everything is drawn large with hard edges and reduced afterwards, which is the cheapest clean antialiasing.
Shapes are few, big and strongly coloured, because a GAN has to learn them at 32 px within minutes.
"""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageChops, ImageDraw

Colour = tuple[int, int, int]
HOLE = (0, 0, 0, 0)  # transparent: what lies below shows through
Point = tuple[float, float]

# At least 80 levels apart in RGB, so that the nearest of them survives lighting, blur and noise.
COLOURS: dict[str, Colour] = {
    "white": (246, 241, 230),
    "red": (222, 76, 68),
    "yellow": (251, 207, 84),
    "green": (98, 180, 112),
    "blue": (74, 146, 220),
    "purple": (140, 98, 190),
}

# Shares of the image's width.
PLATE_RADIUS = 0.455
DISH_RADIUS = 0.285
# A little up and left, so that the garnish at the lower right hardly touches the dish.
DISH_CENTRE: Point = (0.478, 0.478)
GARNISH_RADIUS = 0.093
GARNISH_CENTRE: Point = (0.76, 0.76)


class Pen:
    """Draws on a transparent square layer in a turned, scaled and shifted coordinate frame.

    A unit of the frame is `radius` shares of the layer's width; `centre` is in shares as well, y points down;
    `angle` is in radians, clockwise as seen.
    """

    def __init__(self, width: int, centre: Point, radius: float, angle: float) -> None:
        self.layer = Image.new("RGBA", (width, width))
        self.draw = ImageDraw.Draw(self.layer)
        self.unit = radius * width
        self.origin = (centre[0] * width, centre[1] * width)
        self.turn = (cos(angle), sin(angle))

    def place(self, point: Point) -> Point:
        """Map a point of the frame to pixels of the layer."""
        (x, y), (c, s) = point, self.turn
        return self.origin[0] + self.unit * (c * x - s * y), self.origin[1] + self.unit * (s * x + c * y)

    def disc(self, centre: Point, radius: float, colour: tuple[int, ...]) -> None:
        """Fill a circle; the colour `HOLE` cuts it out."""
        (x, y), r = self.place(centre), radius * self.unit
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def shape(self, points: list[Point], colour: Colour) -> None:
        """Fill a closed outline."""
        self.draw.polygon([self.place(point) for point in points], fill=colour)

    def stroke(self, points: list[Point], thickness: float, colour: Colour) -> None:
        """Draw a line with round joints and ends."""
        self.draw.line([self.place(point) for point in points], colour, round(thickness * self.unit), joint="curve")
        for end in (points[0], points[-1]):
            self.disc(end, thickness / 2, colour)


def polar(radius: float, angle: float, centre: Point = (0.0, 0.0)) -> Point:
    """Give the point at `radius` and `angle` (radians, clockwise from the right) around `centre`."""
    return centre[0] + radius * cos(angle), centre[1] + radius * sin(angle)


def arc(radius: float, start: float, end: float, centre: Point = (0.0, 0.0)) -> list[Point]:
    """Give 25 points along an arc."""
    return [polar(radius, start + (end - start) * i / 24, centre) for i in range(25)]


def wavy(radius: float, depth: float, waves: int, phase: float, centre: Point = (0.0, 0.0)) -> list[Point]:
    """Give the outline of a disc whose rim swings by `depth` in `waves` waves."""
    angles = [2 * pi * i / 72 for i in range(72)]
    return [polar(radius + depth * sin(waves * a + phase), a, centre) for a in angles]


def draw_cevapi(pen: Pen, rng: np.random.Generator) -> None:
    """Four grilled finger-shaped sausages side by side."""
    for row, half in enumerate((0.62, 0.72, 0.68, 0.5)):
        y, slide = 0.51 * (row - 1.5), rng.uniform(-0.05, 0.05) - (0.12 if row == 3 else 0.0)
        left, right = slide - half, slide + half
        pen.stroke([(left, y), (right, y)], 0.43, (96, 46, 22))
        pen.stroke([(left, y - 0.03), (right, y - 0.03)], 0.33, (152, 82, 42))
        pen.stroke([(left, y - 0.11), (right - 0.15, y - 0.11)], 0.09, (206, 136, 88))
        for x in (-0.36, 0.06, 0.48):
            if x < half - 0.1:
                pen.stroke([(slide + x - 0.05, y - 0.13), (slide + x + 0.05, y + 0.13)], 0.08, (92, 42, 20))


def draw_burek(pen: Pen, rng: np.random.Generator) -> None:
    """A coiled pie: one golden rope of filled pastry wound into a spiral."""
    # The radius stops growing for the last turn, which makes the outline round.
    path = [polar(min(0.04 + 0.0113 * i, 0.76), 2 * pi * 3.0 * i / 100 + 0.5) for i in range(101)]
    pen.disc((0.0, 0.0), 0.9, (158, 88, 28))
    pen.stroke(path, 0.36, (158, 88, 28))
    pen.stroke(path, 0.235, (242, 178, 66))
    pen.stroke([(x - 0.02, y - 0.04) for x, y in path[8:]], 0.07, (255, 222, 140))
    for angle in rng.uniform(0, 2 * pi, 6):
        pen.disc(polar(rng.uniform(0.3, 0.7), angle), 0.045, (110, 58, 20))


def draw_fried_egg(pen: Pen, rng: np.random.Generator) -> None:
    """A wobbly white with a crisp edge and a shining yolk."""
    phase = rng.uniform(-0.5, 0.5)
    for size, colour in ((0.92, (206, 146, 80)), (0.845, (255, 254, 250))):
        angles = [2 * pi * i / 72 for i in range(72)]
        swing = [0.06 * sin(3 * a + phase) + 0.05 * sin(5 * a - phase + 1.0) for a in angles]
        pen.shape([polar(size + s, a) for a, s in zip(angles, swing, strict=True)], colour)
    yolk = (0.02 + rng.uniform(-0.08, 0.08), -0.02 + rng.uniform(-0.08, 0.08))
    pen.disc(yolk, 0.45, (240, 146, 20))
    pen.disc((yolk[0] - 0.03, yolk[1] - 0.03), 0.39, (255, 190, 40))
    pen.disc((yolk[0] - 0.15, yolk[1] - 0.16), 0.11, (255, 244, 190))


def draw_pizza(pen: Pen, rng: np.random.Generator) -> None:
    """A slice with a puffy crust, cheese and salami."""
    tip, (left, right) = (0.0, 1.1), ((-0.92, -0.55), (0.92, -0.55))
    pen.shape([tip, left, right], (196, 84, 36))
    pen.shape([(0.0, 0.98), (-0.80, -0.55), (0.80, -0.55)], (255, 214, 98))
    crust = [(0.9 * x, -0.62 - 0.16 * (1 - x * x)) for x in np.linspace(-1, 1, 13)]
    pen.stroke(crust, 0.40, (170, 96, 40))
    pen.stroke([(x, y - 0.03) for x, y in crust], 0.29, (226, 156, 80))
    pen.stroke([(x, y - 0.09) for x, y in crust[1:-3]], 0.07, (250, 202, 136))
    for x, y in ((-0.36, -0.20), (0.32, -0.12), (-0.03, 0.38)):
        spot = (x + rng.uniform(-0.04, 0.04), y + rng.uniform(-0.04, 0.04))
        pen.disc(spot, 0.215, (150, 28, 26))
        pen.disc(spot, 0.165, (214, 52, 42))
    for angle in rng.uniform(0, 2 * pi, 3):
        pen.disc(polar(0.1, angle, (0.0, 0.05)), 0.05, (60, 140, 60))


def draw_donut(pen: Pen, rng: np.random.Generator) -> None:
    """A ring with pink icing and sprinkles; the plate shows through the hole."""
    pen.disc((0.0, 0.0), 0.98, (188, 116, 54))
    pen.disc((-0.02, -0.02), 0.93, (224, 158, 88))
    pen.shape(wavy(0.83, 0.05, 7, rng.uniform(0, 2 * pi)), (250, 128, 176))
    pen.stroke(arc(0.66, pi * 1.02, pi * 1.42), 0.10, (255, 190, 216))
    sprinkles = ((255, 255, 255), (90, 190, 250), (255, 230, 80), (120, 70, 200), (90, 210, 150))
    for i in range(11):
        angle = 2 * pi * (i + rng.uniform(-0.2, 0.2)) / 11
        (x, y), lean = polar(0.52 + 0.22 * (i % 2), angle), rng.uniform(0, pi)
        reach = (0.07 * cos(lean), 0.07 * sin(lean))
        ends = [(x - reach[0], y - reach[1]), (x + reach[0], y + reach[1])]
        pen.stroke(ends, 0.085, sprinkles[i % len(sprinkles)])
    pen.disc((0.0, 0.0), 0.37, (188, 116, 54))
    pen.disc((0.02, 0.03), 0.31, HOLE)


def draw_watermelon(pen: Pen, rng: np.random.Generator) -> None:
    """Half a round slice, lying like a smile."""
    top = (0.0, -0.5)
    pen.shape(arc(1.12, 0, pi, top), (28, 112, 58))
    pen.shape(arc(1.00, 0, pi, top), (214, 240, 176))
    pen.shape(arc(0.88, 0, pi, top), (240, 62, 78))
    pen.shape(arc(0.74, 0, pi, top), (248, 82, 92))
    for i in range(5):
        angle = pi * (i + 0.5 + rng.uniform(-0.12, 0.12)) / 5
        seed = polar(0.58 if i % 2 == 0 else 0.34, angle, top)
        pen.stroke([seed, (seed[0], seed[1] + 0.07)], 0.12, (44, 18, 24))


def draw_sushi(pen: Pen, rng: np.random.Generator) -> None:
    """Three maki rolls: seaweed, rice, salmon."""
    for angle in (-5 * pi / 6, -pi / 6, pi / 2):
        spot = polar(0.58 + rng.uniform(-0.02, 0.02), angle + rng.uniform(-0.05, 0.05), (0.0, -0.05))
        pen.disc(spot, 0.51, (22, 40, 38))
        pen.disc(spot, 0.385, (255, 255, 250))
        pen.disc(spot, 0.225, (255, 116, 66))
        lean = rng.uniform(0, 2 * pi)
        pen.disc(polar(0.12, lean, spot), 0.085, (120, 190, 70))


def draw_salad(pen: Pen, rng: np.random.Generator) -> None:
    """Ruffled lettuce with tomatoes and cucumber."""
    for i in range(7):
        spot = polar(0.58, 2 * pi * i / 7)
        ruffle = rng.uniform(0, 2 * pi)
        pen.shape(wavy(0.40, 0.06, 7, ruffle, spot), (34, 112, 36))
        pen.shape(wavy(0.33, 0.06, 7, ruffle, spot), (112, 190, 48))
        pen.stroke([(0.0, 0.0), spot], 0.07, (190, 232, 120))
    pen.shape(wavy(0.5, 0.06, 8, rng.uniform(0, 2 * pi)), (34, 112, 36))
    pen.shape(wavy(0.44, 0.06, 8, rng.uniform(0, 2 * pi)), (158, 216, 70))
    for angle in (pi / 2, pi * 7 / 6, pi * 11 / 6):
        spot = polar(0.46, angle + rng.uniform(-0.15, 0.15))
        pen.disc(spot, 0.235, (178, 24, 24))
        pen.disc((spot[0] - 0.02, spot[1] - 0.02), 0.19, (240, 60, 44))
        pen.disc((spot[0] - 0.07, spot[1] - 0.08), 0.06, (255, 180, 160))
    pen.disc((0.0, 0.0), 0.2, (60, 140, 60))
    pen.disc((0.0, 0.0), 0.15, (226, 246, 180))


def draw_parsley(pen: Pen) -> None:
    """A sprig of three leaves."""
    pen.stroke([(0.0, 0.95), (0.0, 0.0)], 0.18, (24, 92, 40))
    for angle in (-pi / 2, -pi / 2 - 1.75, -pi / 2 + 1.75):
        pen.shape(wavy(0.47, 0.08, 5, angle, polar(0.5, angle)), (18, 96, 40))
        pen.disc(polar(0.46, angle), 0.24, (52, 148, 62))


def draw_lemon(pen: Pen) -> None:
    """A round slice with its segments."""
    pen.disc((0.0, 0.0), 1.0, (232, 172, 12))
    pen.disc((0.0, 0.0), 0.84, (255, 252, 226))
    for i in range(6):
        wedge = arc(0.68, 2 * pi * (i + 0.12) / 6, 2 * pi * (i + 0.88) / 6)
        pen.shape([polar(0.12, 2 * pi * (i + 0.5) / 6), *wedge], (255, 222, 50))


def draw_chili(pen: Pen) -> None:
    """A bent red pod with a green stem."""
    for grown, colour in ((0.1, (120, 0, 18)), (0.0, (214, 18, 34))):
        outer = arc(0.98 + grown, 0.0, 0.92 * pi, (-0.1, -0.5))
        inner = arc(0.52 - grown, 0.92 * pi, 0.0, (0.0, -0.58))
        pen.shape([*outer, *inner], colour)
    pen.stroke(arc(0.74, 0.12 * pi, 0.5 * pi, (-0.04, -0.54)), 0.12, (255, 140, 120))
    pen.stroke([(0.4, -0.54), (0.86, -0.54)], 0.3, (22, 100, 40))
    pen.stroke([(0.64, -0.58), (0.54, -1.0)], 0.24, (40, 140, 56))


DISH_PAINTERS: dict[str, Callable[[Pen, np.random.Generator], None]] = {
    "ćevapi": draw_cevapi,
    "burek": draw_burek,
    "fried egg": draw_fried_egg,
    "pizza": draw_pizza,
    "donut": draw_donut,
    "watermelon": draw_watermelon,
    "sushi": draw_sushi,
    "salad": draw_salad,
}
GARNISH_PAINTERS: dict[str, Callable[[Pen], None]] = {
    "parsley": draw_parsley,
    "lemon": draw_lemon,
    "chili": draw_chili,
}


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(level * factor)) for level in colour)
    return red, green, blue


def _draw_plate(width: int, table: str, plate: str) -> Image.Image:
    """Draw the empty plate on its table."""
    image = Image.new("RGB", (width, width), COLOURS[table])
    draw = ImageDraw.Draw(image)

    def disc(radius: float, shift: float, colour: Colour) -> None:
        low, high = (0.5 - radius + shift) * width, (0.5 + radius + shift) * width
        draw.ellipse((low, low, high, high), fill=colour)

    for step in range(6):
        disc(PLATE_RADIUS + 0.024 - 0.006 * step, 0.014, _shade(COLOURS[table], 0.96 - 0.045 * step))
    disc(PLATE_RADIUS, 0.0, _shade(COLOURS[plate], 0.84))
    disc(PLATE_RADIUS - 0.008, -0.004, _shade(COLOURS[plate], 1.06))
    disc(PLATE_RADIUS - 0.022, 0.0, COLOURS[plate])
    disc(0.325, 0.0, _shade(COLOURS[plate], 0.88))
    disc(0.318, 0.005, _shade(COLOURS[plate], 0.97))
    return image


def _lay(image: Image.Image, layer: Image.Image) -> None:
    """Put a layer on the image together with the soft shadow it casts to the lower right."""
    mask = layer.getchannel("A")
    shift = round(0.014 * image.width)
    shadow = ImageChops.offset(mask.reduce(4).resize(mask.size, Image.Resampling.BILINEAR), shift, shift)
    image.paste((40, 26, 30), mask=shadow.point(lambda level: level * 2 // 5))
    image.paste(layer, mask=mask)


def draw_plate_of(dish: str, plate: str, table: str, garnish: str, size: int, rng: np.random.Generator) -> Image.Image:
    """Draw one RGB image of `size` x `size` pixels.

    The nuisance (pose, lighting, toppings) comes from `rng` only, drawn in an order that does not depend on
    `size`: the same generator state gives the same scene at every size.
    """
    width = size * (6 if size <= 32 else 4)
    image = _draw_plate(width, table, plate)
    shift_x, shift_y = rng.uniform(-0.02, 0.02, 2)
    scale, turn, light = rng.uniform(0.95, 1.05), rng.uniform(-0.2, 0.2), rng.uniform(0.96, 1.04)
    side_x, side_y, twist = rng.uniform(-0.008, 0.008), rng.uniform(-0.008, 0.008), rng.uniform(-0.2, 0.2)
    pen = Pen(width, (DISH_CENTRE[0] + shift_x, DISH_CENTRE[1] + shift_y), DISH_RADIUS * scale, turn)
    DISH_PAINTERS[dish](pen, rng)
    _lay(image, pen.layer)
    if garnish in GARNISH_PAINTERS:
        pen = Pen(width, (GARNISH_CENTRE[0] + side_x, GARNISH_CENTRE[1] + side_y), GARNISH_RADIUS, twist)
        GARNISH_PAINTERS[garnish](pen)
        _lay(image, pen.layer)
    image = image.resize((size, size), Image.Resampling.LANCZOS)
    return image.point(lambda level: min(255, round(level * light)))
