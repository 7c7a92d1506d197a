"""Draw the pictures of docs/architecture.md: the rooms of lcm/ with their imports, and how documents become steps.

python docs/pictures/draw.py [--check]

Writes rooms.svg and order.svg beside this file; with --check it only says whether they are up to date. The arrows
between rooms are read from the imports, so a new import changes the picture.
"""

import argparse
import ast
import sys
from pathlib import Path

HERE = Path(__file__).parent
LCM = HERE.parents[1] / "lcm"
STYLE = """
text { font: 15px system-ui, sans-serif; fill: #1b1f24; text-anchor: middle }
.small { font-size: 12px; fill: #57606a }
.room { fill: #eef3fb; stroke: #7a93bd }
.file { fill: #f6f6f4; stroke: #b4b2a9 }
.import { fill: none; stroke: #b9bfc8; stroke-width: 1.2 }
.way { fill: none; stroke: #d0542a; stroke-width: 2.2; marker-end: url(#head) }
.step { fill: #d0542a; font-weight: 600; font-size: 13px }
"""
COLUMNS = (
    (("errors", "options", "batch", "files", "ledger", "streams", "sampling", "settings", "config"), 70, 190),
    (("codec", "tales"), 235, 190),
    (("data", "models"), 395, 215),
    (("prepare",), 555, 60),
    (("scores",), 555, 345),
    (("training", "inference"), 720, 215),
    (("evaluation", "plan", "jobs"), 885, 190),
    (("codec_lab", "trials", "doctor", "cli"), 1045, 190),
)
"""Rooms from left to right as they may import one another; the middle of each column, across and down."""

ABOUT = {
    "codec": "text ↔ vectors",
    "tales": "stories, their truth",
    "data": "shards → batches",
    "models": "five families",
    "prepare": "text → shards",
    "scores": "texts against texts",
    "training": "batches → checkpoint",
    "inference": "text → text",
    "evaluation": "scores, report",
    "plan": "memory, days",
    "jobs": "Slurm, tables of runs",
    "codec_lab": "codecs of one's own",
}
WAY = (
    ("prepare", "data", "1"),
    ("data", "training", "2"),
    ("models", "training", "3"),
    ("training", "inference", "4"),
    ("inference", "evaluation", "5"),
)
"""The way of the data, in the order in which a user runs the commands."""

WIDTH, HEIGHT = 130, 46


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a picture is old")
    args = parser.parse_args()
    old = [path for path, text in pictures().items() if not path.is_file() or path.read_text("utf-8") != text]
    if args.check:
        print("\n".join(f"{path}: not up to date; run python docs/pictures/draw.py" for path in old), file=sys.stderr)
        return int(bool(old))
    for path, text in pictures().items():
        path.write_text(text, encoding="utf-8")
    return 0


def pictures() -> dict[Path, str]:
    """Every picture by its path."""
    return {HERE / "rooms.svg": rooms(), HERE / "order.svg": order()}


def imports() -> dict[str, set[str]]:
    """The rooms that each room imports, without those that it imports through another one anyway."""
    direct: dict[str, set[str]] = {}
    for path in sorted(LCM.rglob("*.py")):
        room = path.relative_to(LCM).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lcm" and room != "__init__":
                parts = (node.module or "").split(".")
                names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
                direct.setdefault(room, set()).update(set(names) - {room, "__version__"})

    def reached(room: str) -> set[str]:
        return {found for after in direct.get(room, ()) for found in {after, *reached(after)}}

    if unknown := direct.keys() - {room for column, _, _ in COLUMNS for room in column}:
        sys.exit(f"{HERE / 'draw.py'}: COLUMNS has no place for {', '.join(sorted(unknown))}")
    return {
        room: {after for after in found if not any(after in reached(other) for other in found - {after})}
        for room, found in sorted(direct.items())
    }


def places() -> dict[str, tuple[float, float]]:
    """The middle of each room's box."""
    found = {}
    for column, x, middle in COLUMNS:
        gap = min(50, 340 / (len(column) - 1)) if len(column) > 3 else 110
        for number, room in enumerate(column):
            found[room] = (float(x), middle + gap * (number - (len(column) - 1) / 2))
    return found


def rooms() -> str:
    """The rooms as boxes, imports as thin lines towards the left, the way of the data in color."""
    at = places()
    lines = []
    for room, found in imports().items():
        for other in sorted(found):
            if at[room][0] == at[other][0]:
                continue  # two files of one column
            lines.append(curve(at[room][0] - half(room), at[room][1], at[other][0] + half(other), at[other][1]))
    boxes = [box(room, *at[room]) for room in at]
    way = [arrow(at[start], at[end], number) for start, end, number in WAY]
    return svg(1130, 400, [*lines, *boxes, *way])


def half(room: str) -> float:
    return WIDTH / 2 if room in ABOUT else WIDTH / 2 - 18


def curve(x: float, y: float, to_x: float, to_y: float) -> str:
    bend = (x - to_x) * 0.45
    return f'<path class="import" d="M{x:g} {y:g} C{x - bend:g} {y:g} {to_x + bend:g} {to_y:g} {to_x:g} {to_y:g}"/>'


def box(room: str, x: float, y: float) -> str:
    is_room = room in ABOUT
    width, height = 2 * half(room), HEIGHT if is_room else 34
    shape = f'<rect class="{"room" if is_room else "file"}" x="{x - width / 2:g}" y="{y - height / 2:g}" '
    shape += f'width="{width:g}" height="{height:g}" rx="6"/>'
    if not is_room:
        return shape + text(room, x, y)
    return shape + text(room, x, y - 8) + text(ABOUT[room], x, y + 11, "small")


def arrow(start: tuple[float, float], end: tuple[float, float], number: str) -> str:
    """From box to box, with the number of the step on it."""
    (x, y), (to_x, to_y) = start, end
    if abs(x - to_x) < 1:
        side = HEIGHT / 2 if to_y > y else -HEIGHT / 2
        line = f"M{x:g} {y + side:g} L{to_x:g} {to_y - side:g}"
        middle = (x + 12, (y + to_y) / 2)
    else:
        side = WIDTH / 2 if to_x > x else -WIDTH / 2
        shift = 9 if to_x < x else -9
        line = f"M{x + side:g} {y + shift:g} L{to_x - side:g} {to_y + shift:g}"
        middle = ((x + to_x) / 2, (y + to_y) / 2 + shift - 11)
    return f'<path class="way" d="{line}"/>' + text(number, *middle, "step")


def text(words: str, x: float, y: float, kind: str = "") -> str:
    return f'<text {f"""class="{kind}" """ if kind else ""}x="{x:g}" y="{y:g}" dy=".35em">{words}</text>'


def order() -> str:
    """Documents ⊂ shard ⊂ bundle ⊂ group above, spans ⊂ row ⊂ step below."""
    parts = [text("on disk; here a bundle is 2 shards and a group 2 bundles", 480, 24, "small")]
    lengths = ((3, 5, 2), (6, 2), (4, 3, 3), (2, 7))
    parts += [frame("group", 20, 48, 920, 150), frame("bundle", 30, 74, 440, 114), frame("bundle", 490, 74, 440, 114)]
    for shard, documents in enumerate(lengths):
        x = (40, 258, 500, 718)[shard]
        parts.append(frame("shard", x, 100, 202, 78))
        for number, length in enumerate(documents):
            parts.append(bar(x + 10, 132, length * 16, shard, "document" if (shard, number) == (0, 1) else ""))
            x += length * 16 + 6
    packed = (
        "each bundle packed into rows, the longest documents first; the rows of a group shuffled and taken in steps"
    )
    parts.append(text(packed, 480, 226, "small"))
    rows = (((6, 1), (5, 0)), ((3, 2), (3, 2), (2, 3)), ((7, 3), (4, 2)), ((3, 0), (2, 0), (2, 1)))
    parts += [frame("step", 20, 246, 450, 104), frame("step", 490, 246, 450, 104)]
    for number, row in enumerate(rows):
        left, top = (32, 272) if number < 2 else (502, 272)
        top += 38 * (number % 2)
        parts.append(f'<rect class="file" x="{left}" y="{top}" width="330" height="28" rx="4"/>')
        parts.append(text("row", left + 352, top + 14, "small"))
        place = left + 4.0
        for i, (length, shard) in enumerate(row):
            parts.append(bar(place, top + 4, length * 26, shard, "span" if not (number or i) else "", 20))
            place += length * 26 + 4
    return svg(960, 368, parts)


def frame(name: str, x: float, y: float, width: float, height: float) -> str:
    shape = f'<rect fill="none" stroke="#7a93bd" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>'
    return shape + f'<text class="small" style="text-anchor: start" x="{x + 8:g}" y="{y + 13:g}">{name}</text>'


def bar(x: float, y: float, width: float, shard: int, words: str = "", height: float = 26) -> str:
    color = ("#9db7e0", "#a9d3b8", "#ecc48f", "#d8b1d9")[shard]
    shape = f'<rect fill="{color}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3"/>'
    return shape + (text(words, x + width / 2, y + height / 2, "small") if words else "")


def svg(width: int, height: int, parts: list[str]) -> str:
    head = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    head += '<path d="M0 0 L8 4 L0 8 z" fill="#d0542a"/></marker>'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        f"<style>{STYLE}</style>\n<defs>{head}</defs>\n"
        f'<rect width="{width}" height="{height}" fill="white"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    sys.exit(main())
