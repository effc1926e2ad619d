"""Drawing a synthetic pedestrian with Pillow, at twice the size and reduced, in whole numbers only.

Things are given in units of a picture 100 wide and 200 high with the figure around x = 50; y grows downwards. Heads,
hands, shoes and bags are larger than life, so that a picture of 64 x 32 pixels still shows them.
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from .attributes import COLOR_RGB, HAIR_RGB, Person, View, between, chance, pick, stream

RGB = tuple[int, int, int]
Point = tuple[int, int]

SKIN_RGB = ((250, 216, 186), (234, 186, 146), (186, 130, 92), (126, 84, 58))
# Muted, so that no garment is lost in them.
BACKGROUNDS: dict[str, dict[str, tuple[RGB, ...]]] = {
    "street": {
        "back": ((150, 158, 160), (160, 152, 146), (138, 148, 158)),
        "ground": ((104, 106, 108), (118, 116, 112)),
    },
    "park": {"back": ((176, 204, 216), (190, 208, 212)), "ground": ((128, 152, 104), (140, 158, 112))},
    "wall": {
        "back": ((176, 150, 134), (160, 164, 170), (170, 174, 158)),
        "ground": ((136, 132, 128), (122, 124, 126)),
    },
    "shop": {"back": ((164, 170, 164), (172, 164, 168)), "ground": ((144, 140, 134), (130, 132, 136))},
}
EYE = (24, 22, 26)


def _shade(color: RGB, percent: int) -> RGB:
    """A darker (below 100) or lighter version of a colour."""
    red, green, blue = (min(255, channel * percent // 100) for channel in color)
    return red, green, blue


def _contrast(color: RGB) -> RGB:
    """The second colour of a pattern: white on dark cloth, a dark shade of the cloth on light."""
    return _shade(color, 42) if sum(color) > 400 else (238, 238, 236)


def _fill(draw: ImageDraw.ImageDraw, points: list[Point], fill: RGB | int) -> None:
    """Fill a polygon that every row crosses in one piece.

    Pillow's own filling changed at the edges between its versions 11 and 13; lines, outlines, rectangles and ellipses
    did not. So each row's span is found here and all are drawn as one zigzag line.
    """
    lows: dict[int, int] = {}
    highs: dict[int, int] = {}
    for (start_x, start_y), (end_x, end_y) in zip(points, (*points[1:], points[0]), strict=True):
        if start_y > end_y:
            start_x, start_y, end_x, end_y = end_x, end_y, start_x, start_y
        run, rise = end_x - start_x, max(1, end_y - start_y)
        for y in range(start_y, end_y + 1):
            x = start_x + (2 * run * (y - start_y) + rise) // (2 * rise)
            if x < lows.get(y, 1 << 30):
                lows[y] = x
            if x > highs.get(y, -1 << 30):
                highs[y] = x
    path: list[Point] = []
    for number, y in enumerate(sorted(lows)):
        ends = [(lows[y], y), (highs[y], y)]
        path += ends if number % 2 == 0 else reversed(ends)
    draw.line(path, fill=fill)


class _Canvas:
    """A picture at twice the wanted size, drawn on in figure units."""

    def __init__(self, height: int, width: int, view: View):
        self.image = Image.new("RGB", (2 * width, 2 * height))
        self.draw = ImageDraw.Draw(self.image)
        self.height, self.width = 2 * height, 2 * width
        # Pixels per unit, in 1/4096. A figure is at most a quarter longer or wider than drawn, whatever the format.
        scale_x, scale_y = self.width * 4096 // 100, self.height * 4096 // 200
        scale_x, scale_y = min(scale_x, scale_y * 5 // 4), min(scale_y, scale_x * 5 // 4)
        self.scale_x, self.scale_y = scale_x * view.scale // 100, scale_y * view.scale // 100
        self.origin_x = self.width // 2 + (view.shift_x - 50) * self.scale_x // 4096
        self.origin_y = self.height // 2 + (view.shift_y - 100) * self.scale_y // 4096

    def x(self, units: int) -> int:
        return self.origin_x + units * self.scale_x // 4096

    def y(self, units: int) -> int:
        return self.origin_y + units * self.scale_y // 4096

    def polygon(self, points: Sequence[Point], color: RGB, edge: int = 62) -> None:
        """A filled polygon, see `_fill`; `edge` is the shade of its outline in per cent, 0 for none."""
        corners = [(self.x(x), self.y(y)) for x, y in points]
        _fill(self.draw, corners, color)
        if edge:
            self.draw.polygon(corners, outline=_shade(color, edge))

    def box(self, left: int, top: int, right: int, bottom: int, color: RGB, edge: int = 62) -> None:
        corners = (self.x(left), self.y(top), self.x(right), self.y(bottom))
        self.draw.rectangle(corners, fill=color, outline=_shade(color, edge or 100))

    def ellipse(self, left: int, top: int, right: int, bottom: int, color: RGB, edge: int = 62) -> None:
        corners = (self.x(left), self.y(top), self.x(right), self.y(bottom))
        self.draw.ellipse(corners, fill=color, outline=_shade(color, edge or 100))

    def half_ellipse(self, left: int, top: int, right: int, bottom: int, color: RGB, edge: int = 62) -> None:
        """The upper half of an ellipse."""
        corners = (self.x(left), self.y(top), self.x(right), self.y(bottom))
        self.draw.pieslice(corners, 180, 360, fill=color, outline=_shade(color, edge or 100))

    def limb(self, points: Sequence[Point], width: int, color: RGB, edge: int = 62) -> None:
        """A band of one width through points that go down the picture (arms, legs)."""
        half = width // 2
        left = [(x - half, y) for x, y in points]
        right = [(x - half + width, y) for x, y in reversed(points)]
        self.polygon((*left, *right), color, edge)

    def pattern(self, points: Sequence[Point], color: RGB, kind: str) -> None:
        """Stripes, checks or dots over a polygon that is already painted in `color`."""
        corners = [(self.x(x), self.y(y)) for x, y in points]
        left, top = min(x for x, _ in corners), min(y for _, y in corners)
        right, bottom = max(x for x, _ in corners) + 1, max(y for _, y in corners) + 1
        mask = Image.new("1", (right - left, bottom - top))
        _fill(ImageDraw.Draw(mask), [(x - left, y - top) for x, y in corners], 1)
        tile = Image.new("RGB", mask.size, color)
        draw, second = ImageDraw.Draw(tile), _contrast(color)
        unit_x, unit_y = self.scale_x, self.scale_y

        def across(units: int) -> int:
            return units * unit_x // 4096

        def down(units: int) -> int:
            return units * unit_y // 4096

        if kind in ("striped", "checked"):
            thick, gap = (6, 15) if kind == "striped" else (3, 14)
            for start in range(5, 80, gap):
                draw.rectangle((0, down(start), right, down(start) + max(0, down(thick) - 1)), fill=second)
        if kind == "checked":
            for start in range(4, 80, 13):
                draw.rectangle((across(start), 0, across(start) + max(0, across(3) - 1), bottom), fill=second)
        if kind == "dotted":
            for row, start_y in enumerate(range(4, 80, 11)):
                for start_x in range(3 + 6 * (row % 2), 80, 12):
                    draw.ellipse((across(start_x), down(start_y), across(start_x + 6), down(start_y + 6)), fill=second)
        self.image.paste(tile, (left, top), mask)


def draw_person(person: Person, view: View, image_size: tuple[int, int]) -> Image.Image:
    """The RGB picture of a person in a view, `image_size` = (height, width) in pixels."""
    height, width = image_size
    canvas = _Canvas(height, width, view)
    _draw_background(canvas, view)
    if view.direction in ("left", "right"):
        _draw_from_side(canvas, person, view)
    else:
        _draw_upright(canvas, person, view)
    image = canvas.image.reduce(2)
    if view.direction == "left":
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    gains = [view.brightness * tint for tint in view.tint]
    return image.point([min(255, value * gain // 10000) for gain in gains for value in range(256)])


def _draw_background(canvas: _Canvas, view: View) -> None:
    """A place with some clutter, stretched over the whole picture whatever its format."""
    rng = stream("background", view.clutter)
    draw = canvas.draw
    place = BACKGROUNDS[view.background]
    back, ground = pick(rng, place["back"]), pick(rng, place["ground"])

    def box(left: int, top: int, right: int, bottom: int, color: RGB) -> None:
        corners = (left * canvas.width // 100, top * canvas.height // 200)
        draw.rectangle((*corners, right * canvas.width // 100, bottom * canvas.height // 200), fill=color)

    horizon = between(rng, 128, 156)
    box(0, 0, 100, 200, back)
    if view.background == "street":
        for start in range(between(rng, -20, 0), 100, 34):
            box(start, 10, start + 26, horizon, _shade(back, between(rng, 84, 108)))
            for floor in range(20, horizon - 16, 32):
                box(start + 6, floor, start + 19, floor + 16, _shade(back, 72))
    elif view.background == "park":
        for _ in range(3):
            left, top = between(rng, -16, 84), between(rng, 20, 70)
            box(left + 12, top + 20, left + 17, horizon, (120, 104, 86))
            corner = (left * canvas.width // 100, top * canvas.height // 200)
            opposite = ((left + 30) * canvas.width // 100, (top + 56) * canvas.height // 200)
            draw.ellipse((*corner, *opposite), fill=_shade((116, 146, 104), between(rng, 86, 110)))
    elif view.background == "wall":
        for row in range(0, horizon, 18):
            box(0, row, 100, row, _shade(back, 86))
            for start in range(row % 36 // 2 - 10, 100, 26):
                box(start, row, start, row + 18, _shade(back, 86))
    else:
        for start in range(between(rng, -24, 0), 100, 50):
            box(start + 4, 44, start + 46, horizon - 8, _shade((178, 190, 196), between(rng, 86, 104)))
        for start in range(0, 100, 12):
            box(start, 16, start + 5, 34, _shade(back, 78))
    box(0, horizon, 100, 200, ground)
    box(0, horizon, 100, horizon + 3, _shade(ground, 82))
    if chance(rng, 0.5):
        left = pick(rng, (between(rng, 0, 8), between(rng, 90, 96)))
        box(left, between(rng, 0, 40), left + 3, horizon + 14, (96, 98, 100))
    if chance(rng, 0.5):
        left = pick(rng, (between(rng, -12, 0), between(rng, 84, 96)))
        box(
            left,
            horizon - between(rng, 6, 20),
            left + 18,
            horizon + 18,
            _shade((140, 130, 122), between(rng, 70, 110)),
        )


def _rgb(color: str) -> RGB:
    """The RGB of a colour; "none", the colour of an absent thing, has one that is never drawn."""
    return COLOR_RGB.get(color, (0, 0, 0))


def _sleeve(person: Person) -> tuple[str, RGB]:
    """Length and colour of the outermost sleeve."""
    if person.coat in ("jacket", "long coat"):
        return "long", _rgb(person.coat_color)
    if person.dress != "none":
        return ("short" if person.dress == "dress" else "long"), _rgb(person.dress_color)
    return person.top_sleeve, _rgb(person.top_color)


def _draw_arm(canvas: _Canvas, shoulder: Point, elbow: Point, hand: Point, width: int, person: Person) -> None:
    """An arm from shoulder to hand, skin first, then the sleeve over it."""
    skin = SKIN_RGB[person.skin]
    length, color = _sleeve(person)
    points = [shoulder, elbow, hand]
    if hand[1] < elbow[1]:  # a raised forearm is its own band, drawn from the hand down
        canvas.limb((hand, elbow), width, skin if length != "long" else color)
        points = [shoulder, (elbow[0], elbow[1] + 4)]
    elif length == "long":
        points = [shoulder, elbow, (hand[0], hand[1])]
    canvas.limb(points, width, color if length == "long" else skin)
    if length == "short":
        canvas.limb((shoulder, elbow), width + 3, color)
    canvas.ellipse(hand[0] - width // 2 - 1, hand[1] - 5, hand[0] + width // 2 + 1, hand[1] + 6, skin)


def _draw_shoe(canvas: _Canvas, left: int, right: int, sole: int, person: Person, toe: int = 0) -> None:
    """A shoe on the ground line `sole`; `toe` lengthens it to the right (seen from the side)."""
    color = _rgb(person.shoes_color)
    right += toe
    if person.shoes == "sandals":
        canvas.polygon(
            ((left, sole - 15), (right - toe, sole - 15), (right, sole - 6), (left, sole - 6)), SKIN_RGB[person.skin]
        )
        canvas.box(left, sole - 5, right, sole, color, 0)
        canvas.box(left, sole - 14, right - toe // 2, sole - 9, color, 0)
        return
    top = sole - {"boots": 30, "sneakers": 16, "dress shoes": 12}[person.shoes]
    canvas.polygon(
        ((left, top), (right - toe, top), (right - toe, sole - 10), (right, sole - 7), (right, sole), (left, sole)),
        color,
    )
    if person.shoes == "sneakers":
        canvas.box(left, sole - 3, right, sole, (250, 250, 250) if sum(color) < 620 else (150, 150, 154), 0)
        canvas.box(
            left + 4, sole - 9, right - toe - 4, sole - 8, (250, 250, 250) if sum(color) < 620 else (110, 110, 114), 0
        )
    elif person.shoes == "boots":
        canvas.box(left, top, right - toe, top + 4, _shade(color, 70), 0)
        canvas.box(left, sole - 3, right, sole, _shade(color, 55), 0)
    else:
        canvas.box(left, sole - 2, left + 5, sole + 1, _shade(color, 45), 0)


def _draw_leg(canvas: _Canvas, hip: Point, knee: Point, foot: Point, thick: int, person: Person) -> None:
    """A leg from hip to foot in its trouser leg, skin where there is none."""
    skin = SKIN_RGB[person.skin]
    canvas.limb((hip, knee, foot), thick - 4, skin)
    lower = "trousers" if person.dress == "jumpsuit" else person.lower
    color = _rgb(person.dress_color if person.dress != "none" else person.lower_color)
    if lower in ("trousers", "jeans"):
        canvas.limb((hip, knee, foot), thick, color)
        if lower == "jeans":
            seam = (244, 190, 90)
            canvas.limb(
                (
                    (hip[0] + thick // 2 - 3, hip[1] + 4),
                    (knee[0] + thick // 2 - 3, knee[1]),
                    (foot[0] + thick // 2 - 3, foot[1]),
                ),
                2,
                seam,
                0,
            )
            canvas.box(
                foot[0] - thick // 2, foot[1] - 4, foot[0] - thick // 2 + thick, foot[1], _shade(color, 140), 70
            )
    elif lower == "leggings":
        canvas.limb((hip, knee, foot), thick - 5, color)
    elif lower == "shorts":
        canvas.limb((hip, (knee[0], knee[1] + 4)), thick + 3, color)


def _draw_skirt(canvas: _Canvas, person: Person, waist: int, hem: int, spread: int, middle: int = 50) -> None:
    color = _rgb(person.dress_color if person.dress == "dress" else person.lower_color)
    points = ((middle - waist, 108), (middle + waist, 108), (middle + spread, hem), (middle - spread, hem))
    canvas.polygon(points, color)
    for fold in (-spread // 2, 0, spread // 2):
        canvas.polygon(
            ((middle + fold // 2, 122), (middle + fold + 2, hem - 1), (middle + fold, hem - 1)), _shade(color, 78), 0
        )


def _draw_hair_behind(canvas: _Canvas, person: Person, middle: int) -> None:
    """The part of long hair that hangs behind the head and shoulders."""
    if person.hair_length == "long":
        color = HAIR_RGB[person.hair_color]
        canvas.polygon(((middle - 20, 40), (middle + 20, 40), (middle + 22, 84), (middle - 22, 84)), color)


def _draw_hat(canvas: _Canvas, person: Person, left: int, right: int, view: str) -> None:
    """A hat on a head that spans `left`..`right`, its top at y = 24."""
    color = _rgb(person.hat_color)
    if person.hat == "cap":
        canvas.half_ellipse(left - 2, 18, right + 2, 58, color)
        if view == "front":
            canvas.half_ellipse(left - 4, 33, right + 4, 48, _shade(color, 78))
        elif view == "side":
            canvas.polygon(((right - 6, 34), (right + 16, 37), (right + 16, 42), (right - 6, 40)), _shade(color, 78))
    elif person.hat == "beanie":
        canvas.half_ellipse(left - 2, 14, right + 2, 60, color)
        canvas.box(left - 3, 32, right + 3, 41, _shade(color, 72))
        middle = (left + right) // 2
        canvas.ellipse(middle - 6, 8, middle + 6, 19, _shade(color, 116))
    elif person.hat == "sun hat":
        canvas.half_ellipse(left - 1, 12, right + 1, 58, color)
        canvas.ellipse(left - 17, 31, right + 17, 42, color)
        canvas.box(left - 1, 29, right + 1, 33, _shade(color, 55), 0)


def _draw_umbrella(canvas: _Canvas, person: Person, x: int, hand: int) -> None:
    color = _rgb(person.carry_color)
    middle = (x + 50) // 2
    canvas.box(x - 1, 14, x + 1, hand + 6, (70, 60, 56), 0)
    canvas.half_ellipse(middle - 46, 0, middle + 46, 40, color)
    for rib in (-24, 24):
        canvas.polygon(((middle, 1), (middle + rib + 1, 19), (middle + rib - 1, 19)), _shade(color, 66), 0)


def _draw_carried(canvas: _Canvas, person: Person, x: int, y: int) -> None:
    """The carried object in a hand at (x, y); an umbrella is drawn by `_draw_umbrella`."""
    if person.carry == "phone":
        canvas.box(x - 7, y - 15, x + 6, y + 6, (30, 30, 34))
        canvas.box(x - 5, y - 12, x + 4, y + 3, (150, 214, 244), 0)
    elif person.carry == "book":
        color = _rgb(person.carry_color)
        canvas.box(x - 11, y - 13, x + 10, y + 11, color)
        canvas.box(x + 7, y - 12, x + 10, y + 10, (246, 244, 234), 0)
        canvas.box(x - 7, y - 7, x + 3, y - 4, _contrast(color), 0)
    elif person.carry == "bottle":
        color = _rgb(person.carry_color)
        canvas.box(x - 8, y - 13, x + 7, y + 16, color)
        canvas.box(x - 4, y - 21, x + 3, y - 13, _shade(color, 60))
        canvas.box(x - 8, y - 1, x + 7, y + 4, (236, 240, 244), 0)
    elif person.carry == "shopping bag":
        color = _rgb(person.carry_color)
        canvas.box(x - 6, y, x - 4, y + 10, _shade(color, 60), 0)
        canvas.box(x + 4, y, x + 6, y + 10, _shade(color, 60), 0)
        canvas.box(x - 11, y + 8, x + 11, y + 44, color)
        canvas.box(x - 5, y + 20, x + 5, y + 30, _contrast(color), 0)


def _draw_hand_luggage(canvas: _Canvas, person: Person, x: int, y: int) -> None:
    """A handbag or suitcase in a hand at (x, y)."""
    color = _rgb(person.bag_color)
    if person.bag == "handbag":
        for side in (-1, 1):
            canvas.box(x + side * 6 - 1, y, x + side * 6 + 1, y + 12, _shade(color, 70), 0)
        canvas.box(x - 7, y - 2, x + 7, y + 1, _shade(color, 70), 0)
        canvas.polygon(((x - 9, y + 10), (x + 9, y + 10), (x + 13, y + 32), (x - 13, y + 32)), color)
        canvas.box(x - 3, y + 14, x + 3, y + 20, (250, 226, 130))
    elif person.bag == "suitcase":
        canvas.box(x - 4, y, x - 2, 142, (70, 70, 74), 0)
        canvas.box(x + 2, y, x + 4, 142, (70, 70, 74), 0)
        canvas.box(x - 13, 140, x + 13, 186, color)
        canvas.box(x - 13, 152, x + 13, 155, _shade(color, 66), 0)
        canvas.box(x - 13, 170, x + 13, 173, _shade(color, 66), 0)
        canvas.ellipse(x - 12, 184, x - 4, 192, (30, 30, 32))
        canvas.ellipse(x + 4, 184, x + 12, 192, (30, 30, 32))


def _draw_top(canvas: _Canvas, person: Person, torso: Sequence[Point], shoulder: int, waist: int, view: str) -> None:
    """The top, dress bodice or jumpsuit on a torso polygon around x = 50, with what tells the garments apart."""
    skin = SKIN_RGB[person.skin]
    color = _rgb(person.dress_color if person.dress != "none" else person.top_color)
    canvas.polygon(torso, color)
    if person.top_pattern in ("striped", "checked", "dotted"):
        canvas.pattern(torso, color, person.top_pattern)
    front, dark = view == "front", _shade(color, 68)
    if person.top_pattern == "logo" and front:
        canvas.ellipse(40, 78, 60, 98, _contrast(color), 0)
        canvas.box(47, 82, 53, 94, color, 0)
    if person.top == "tank top":
        canvas.polygon(
            ((50 - shoulder, 63), (50 - shoulder + 9, 63), (50 - shoulder + 4, 84), (50 - shoulder, 84)), skin, 0
        )
        canvas.polygon(
            ((50 + shoulder, 63), (50 + shoulder - 9, 63), (50 + shoulder - 4, 84), (50 + shoulder, 84)), skin, 0
        )
        if view != "side":
            canvas.ellipse(42, 52, 58, 76, skin, 0)
    elif person.top == "t-shirt" and view != "side":
        canvas.ellipse(42, 56, 58, 69, skin, 0)
    elif person.top == "shirt":
        if front:
            canvas.box(49, 66, 51, 116, _contrast(color), 0)
            canvas.polygon(((50, 76), (38, 64), (44, 60)), _shade(color, 84))
            canvas.polygon(((50, 76), (62, 64), (56, 60)), _shade(color, 84))
        elif view == "side":
            canvas.box(50 + waist - 3, 68, 50 + waist - 1, 116, _contrast(color), 0)
    elif person.top == "sweater":
        canvas.box(50 - waist, 111, 50 + waist, 118, dark, 0)
        canvas.ellipse(40, 57, 60, 68, dark, 0)
    elif person.top == "hoodie":
        canvas.box(50 - waist, 113, 50 + waist, 118, dark, 0)
        if front:
            canvas.ellipse(36, 54, 64, 73, dark)
            canvas.polygon(((36, 110), (64, 110), (59, 96), (41, 96)), dark, 0)
            canvas.box(45, 70, 46, 86, (240, 240, 240), 0)
            canvas.box(54, 70, 55, 86, (240, 240, 240), 0)
        elif view == "back":
            canvas.polygon(((34, 60), (66, 60), (60, 84), (50, 90), (40, 84)), dark)
        else:
            canvas.polygon(((30, 60), (50, 60), (40, 82), (30, 78)), dark)
    if person.dress == "jumpsuit":
        canvas.box(50 - waist, 104, 50 + waist, 110, _shade(color, 45), 0)
        if front:
            canvas.box(49, 66, 51, 104, _shade(color, 45), 0)
    elif person.dress == "dress":
        canvas.box(50 - waist, 102, 50 + waist, 107, _shade(color, 60), 0)
        if front:
            canvas.ellipse(40, 52, 60, 76, skin, 0)


def _draw_coat(canvas: _Canvas, person: Person, half: int, view: str) -> None:
    """An open coat in front, a closed one from the back and side, `half` a shoulder's width around x = 50."""
    color = _rgb(person.coat_color)
    hem = {"jacket": 118, "gilet": 118, "long coat": 146}[person.coat]
    flare = half + (5 if person.coat == "long coat" else 1)
    if view == "front":
        canvas.polygon(((50 - half, 62), (41, 60), (39, hem), (50 - flare, hem)), color)
        canvas.polygon(((50 + half, 62), (59, 60), (61, hem), (50 + flare, hem)), color)
        if person.coat != "gilet":
            canvas.polygon(((41, 60), (35, 66), (39, 86)), _shade(color, 74))
            canvas.polygon(((59, 60), (65, 66), (61, 86)), _shade(color, 74))
        sides: tuple[tuple[int, int], ...] = ((50 - flare + 2, 38), (62, 50 + flare - 2))
    else:
        canvas.polygon(((50 - half, 62), (50 + half, 62), (50 + flare, hem), (50 - flare, hem)), color)
        sides = ((50 - flare + 2, 50 + flare - 2),)
    if person.coat == "gilet":
        for row in range(74, hem - 4, 12):
            for left, right in sides:
                canvas.box(left, row, right, row + 2, _shade(color, 62), 0)
    elif person.coat == "jacket":
        for left, right in sides:
            canvas.box(left, hem - 6, right, hem, _shade(color, 66), 0)


def _draw_face(canvas: _Canvas, person: Person, eyes: tuple[int, ...], mouth: int) -> None:
    """Eyes or glasses, and the mouth; lips and lashes mark a woman, a moustache a man."""
    for eye in eyes:
        if person.glasses == "sunglasses":
            canvas.ellipse(eye - 6, 39, eye + 6, 50, (14, 14, 18), 0)
        else:
            if person.glasses == "glasses":
                canvas.ellipse(eye - 6, 38, eye + 6, 50, (30, 30, 36), 0)
                canvas.ellipse(eye - 4, 40, eye + 4, 48, (250, 252, 255), 0)
            canvas.ellipse(eye - 2, 42, eye + 2, 47, EYE, 0)
    if person.glasses != "none":
        canvas.box(min(eyes), 42, max(eyes), 44, (20, 20, 26), 0)
    if person.gender == "woman":
        canvas.ellipse(mouth - 4, 53, mouth + 4, 57, (206, 40, 62), 0)
    else:
        canvas.box(mouth - 6, 51, mouth + 6, 53, _shade(SKIN_RGB[person.skin], 50), 0)


def _draw_upright(canvas: _Canvas, person: Person, view: View) -> None:
    """A person from the front or the back."""
    front = view.direction == "front"
    man = person.gender == "man"
    shoulder, waist, hip = (24, 20, 19) if man else (18, 13, 19)
    skin = SKIN_RGB[person.skin]
    walking = view.action == "walking"
    canvas.ellipse(22, 186, 78, 199, (84, 84, 82), 0)

    # Legs: walking lifts one foot and spreads both.
    thick = 17 if man else 15
    spread = 13 if walking else 10
    soles = [194, 194]
    if walking:
        soles[view.step] = 180
    for side, sole in zip((-1, 1), soles, strict=True):
        hip_x, foot_x = 50 + side * 9, 50 + side * spread
        knee_x = foot_x + (2 * side if walking and sole == 180 else 0)
        _draw_leg(canvas, (hip_x, 112), (knee_x, 148), (foot_x, sole - 8), thick, person)
        _draw_shoe(canvas, foot_x - 9, foot_x + 9, sole, person)
    if person.lower == "skirt" or person.dress == "dress":
        _draw_skirt(canvas, person, hip - 3, 158, 27)
    elif person.lower == "long skirt":
        _draw_skirt(canvas, person, hip - 3, 171, 31)

    if front:
        _draw_hair_behind(canvas, person, 50)
        if person.bag == "backpack":  # its sides, beyond the body
            canvas.box(50 - waist - 13, 74, 50 + waist + 13, 114, _rgb(person.bag_color))
    hands = _draw_arms(canvas, person, view, shoulder)

    canvas.box(44, 56, 56, 68, _shade(skin, 88), 0)
    torso = (
        (50 - shoulder, 64),
        (43, 61),
        (57, 61),
        (50 + shoulder, 64),
        (50 + waist, 96),
        (50 + hip, 118),
        (50 - hip, 118),
        (50 - waist, 96),
    )
    if person.dress == "none" and person.lower not in ("skirt", "long skirt"):
        canvas.polygon(
            ((50 - hip, 112), (50 + hip, 112), (50 + hip, 124), (50 - hip, 124)), _rgb(person.lower_color), 0
        )
    elif person.dress == "jumpsuit":
        canvas.polygon(
            ((50 - hip, 112), (50 + hip, 112), (50 + hip, 124), (50 - hip, 124)), _rgb(person.dress_color), 0
        )
    _draw_top(canvas, person, torso, shoulder, hip, view.direction)
    if person.coat != "none":
        _draw_coat(canvas, person, max(shoulder, hip), view.direction)
    _draw_worn_bag(canvas, person, front, shoulder)

    # Head.
    canvas.ellipse(34, 24, 66, 62, skin)
    if front:
        _draw_face(canvas, person, (43, 57), 50)
    _draw_hair_upright(canvas, person, front)
    if person.hat != "none":
        _draw_hat(canvas, person, 34, 66, view.direction)

    _draw_hand_luggage(canvas, person, *hands[0])
    if person.carry == "umbrella":
        _draw_umbrella(canvas, person, *hands[1])
    else:
        _draw_carried(canvas, person, *hands[1])


def _draw_arms(canvas: _Canvas, person: Person, view: View, shoulder: int) -> tuple[Point, Point]:
    """Both arms, and where the hands are: the bag's hand on the left, the carried object's on the right."""
    width = 11 if person.gender == "man" else 9
    out = shoulder + 4 + view.arm
    left, right = (50 - out - 3, 116), (50 + out + 3, 116)
    if view.action == "walking":
        raised = 108 if view.step else 116
        left, right = (left[0], raised), (right[0], 224 - raised)
    if person.bag in ("handbag", "suitcase"):
        left = (50 - out - 4, 114)
    elbow = (50 + out, 92)
    if person.carry in ("umbrella", "phone", "book", "bottle"):
        right = (50 + out + 2, 82)
        elbow = (50 + out + 1, 98)
    elif person.carry == "shopping bag":
        right = (50 + out + 4, 112)
    _draw_arm(canvas, (50 - shoulder + 2, 66), (50 - out, 92), left, width, person)
    _draw_arm(canvas, (50 + shoulder - 2, 66), elbow, right, width, person)
    return left, right


def _draw_worn_bag(canvas: _Canvas, person: Person, front: bool, shoulder: int) -> None:
    """A backpack or shoulder bag over the clothes."""
    if person.bag not in ("backpack", "shoulder bag"):
        return
    color = _rgb(person.bag_color)
    if person.bag == "backpack" and front:
        for side in (-1, 1):
            x = 50 + side * (shoulder - 6)
            canvas.box(x - 4, 62, x + 4, 106, color)
    elif person.bag == "backpack":
        canvas.box(50 - 19, 66, 50 + 19, 114, color)
        canvas.half_ellipse(50 - 15, 58, 50 + 15, 76, color)
        canvas.box(50 - 13, 90, 50 + 13, 108, _shade(color, 78))
        canvas.box(50 - 2, 90, 50 + 2, 94, (250, 226, 130), 0)
    else:
        near_x = 50 - shoulder + 4 if front else 50 + shoulder - 4
        far_x = 50 + shoulder + 2 if front else 50 - shoulder - 2
        canvas.polygon(((near_x - 3, 63), (near_x + 3, 63), (far_x + 2, 112), (far_x - 4, 112)), color)
        canvas.box(far_x - 13, 106, far_x + 11, 132, color)
        canvas.box(far_x - 13, 106, far_x + 11, 116, _shade(color, 76))


def _draw_hair_upright(canvas: _Canvas, person: Person, front: bool) -> None:
    if person.hair_length == "bald":
        return
    color = HAIR_RGB[person.hair_color]
    if person.hair_length == "bun" and person.hat == "none":
        canvas.ellipse(39, 7, 61, 30, color)
    if not front:
        canvas.ellipse(33, 22, 67, 58 if person.hair_length != "bun" else 52, color)
        if person.hair_length == "long":
            canvas.polygon(((32, 40), (68, 40), (70, 88), (30, 88)), color)
        return
    canvas.half_ellipse(33, 21, 67, 54, color)
    if person.hair_length == "long":
        canvas.polygon(((32, 36), (38, 36), (36, 84), (26, 84)), color)
        canvas.polygon(((68, 36), (62, 36), (64, 84), (74, 84)), color)
    elif person.hair_length == "short":
        canvas.box(33, 36, 36, 46, color, 0)
        canvas.box(64, 36, 67, 46, color, 0)


def _draw_from_side(canvas: _Canvas, person: Person, view: View) -> None:
    """A person who faces right."""
    man = person.gender == "man"
    half, hip = (16, 15) if man else (12, 16)
    skin = SKIN_RGB[person.skin]
    walking = view.action == "walking"
    canvas.ellipse(18, 186, 82, 199, (84, 84, 82), 0)

    thick = 18 if man else 16
    stride = 20 if walking else 4
    for x, lift in ((50 - stride, 4 if walking else 0), (50 + stride, 0)):
        knee = 50 + (x - 50) * 2 // 3 + (5 if walking else 0)
        _draw_leg(canvas, (50, 112), (knee, 148), (x, 186 - lift), thick, person)
        _draw_shoe(canvas, x - 10, x + 7, 194 - lift, person, toe=10)
    if person.lower == "skirt" or person.dress == "dress":
        _draw_skirt(canvas, person, hip - 1, 158, 26)
    elif person.lower == "long skirt":
        _draw_skirt(canvas, person, hip - 1, 171, 30)

    canvas.box(44, 56, 56, 68, _shade(skin, 88), 0)
    chest = half if man else half + 4
    torso = (
        (50 - half, 66),
        (44, 61),
        (56, 61),
        (50 + half, 68),
        (50 + chest, 80),
        (50 + half, 98),
        (50 + hip, 118),
        (50 - hip, 118),
        (50 - half, 98),
    )
    if person.dress == "jumpsuit" or person.lower in ("trousers", "jeans", "leggings", "shorts"):
        color = _rgb(person.dress_color if person.dress == "jumpsuit" else person.lower_color)
        canvas.box(50 - hip, 112, 50 + hip, 124, color, 0)
    _draw_top(canvas, person, torso, half, hip, "side")
    if person.coat != "none":
        _draw_coat(canvas, person, hip + 1, "side")
    if person.bag == "backpack":
        color = _rgb(person.bag_color)
        canvas.polygon(((50 - half + 2, 64), (50 - half - 16, 70), (50 - half - 18, 114), (50 - half + 2, 116)), color)
        canvas.box(50 - half - 17, 92, 50 - half - 6, 110, _shade(color, 78))
        canvas.polygon(
            ((50 - half + 2, 63), (54, 63), (58, 84), (50 - half + 2, 108), (50 - half + 2, 100), (51, 83), (49, 69)),
            color,
        )

    # Head: face to the right, hair at the back.
    if person.hair_length == "long":
        canvas.polygon(((32, 40), (46, 36), (46, 84), (26, 86)), HAIR_RGB[person.hair_color])
    canvas.ellipse(35, 24, 67, 62, skin)
    canvas.polygon(((65, 42), (71, 49), (65, 51)), skin, 0)
    _draw_face(canvas, person, (59,), 61)
    if person.glasses != "none":
        canvas.box(42, 42, 56, 44, (20, 20, 26), 0)
    if person.hair_length != "bald":
        color = HAIR_RGB[person.hair_color]
        if person.hair_length == "bun" and person.hat == "none":
            canvas.ellipse(20, 16, 43, 39, color)
        canvas.half_ellipse(33, 21, 67, 54, color)
        canvas.polygon(((33, 36), (46, 36), (44, 50), (40, 56), (35, 52)), color, 0)
        if person.hair_length == "long":
            canvas.polygon(((33, 38), (44, 38), (42, 84), (28, 84)), color, 0)
    if person.hat != "none":
        _draw_hat(canvas, person, 35, 67, "side")

    # The near arm over the body. What is carried is held out in front of it.
    width = 12 if man else 10
    swing = (12 if view.step else -10) if walking else view.arm
    hand, elbow = (50 + swing, 116), (50 + swing // 3 - 2, 92)
    if person.carry in ("phone", "book", "bottle", "umbrella"):
        far_hand, far_elbow = (80, 88), (64, 96)
        _draw_arm(canvas, (52, 68), far_elbow, far_hand, width - 1, person)
        if person.carry == "umbrella":
            _draw_umbrella(canvas, person, *far_hand)
        else:
            _draw_carried(canvas, person, *far_hand)
    elif person.carry == "shopping bag":
        _draw_arm(canvas, (54, 68), (66, 92), (78, 112), width - 1, person)
        _draw_carried(canvas, person, 80, 112)
    if person.bag == "suitcase":
        hand, elbow = (22, 116), (36, 94)
    _draw_arm(canvas, (49, 67), elbow, hand, width, person)
    _draw_hand_luggage(canvas, person, *hand)
    if person.bag == "shoulder bag":
        color = _rgb(person.bag_color)
        canvas.polygon(((50, 62), (55, 63), (48, 112), (42, 112)), color)
        canvas.box(32, 106, 58, 132, color)
        canvas.box(32, 106, 58, 116, _shade(color, 76))
