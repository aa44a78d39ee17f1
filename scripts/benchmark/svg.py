"""Bar and line charts as SVG, written by hand: two shapes are all that is needed."""
from xml.sax.saxutils import escape

COLOURS = ("#1f6f8b", "#e07a1f", "#6a4c93", "#5b8c3e")
FONT = 'font-family="system-ui, sans-serif" font-size="12"'


def number(value):
    """1234567 as 1.2M, 45678 as 46k, 0.123 as 0.12."""
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return ("%.1f" if value < 10 * limit else "%.0f") % (value / limit) + suffix
    return "%.0f" % value if value >= 100 else "%.1f" % value if value >= 10 else "%.2f" % value


def page(width, height, title, body):
    return "\n".join(
        ['<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" %s>' % (width, height, width, height, FONT),
         '<rect width="100%" height="100%" fill="#ffffff"/>',
         '<text x="12" y="22" font-size="15" font-weight="600" fill="#222">%s</text>' % escape(title)] + body + ["</svg>", ""])


def legend(names, x, y):
    parts = []
    for at, name in enumerate(names):
        parts.append('<rect x="%d" y="%d" width="12" height="12" fill="%s"/>' % (x, y, COLOURS[at % len(COLOURS)]))
        parts.append('<text x="%d" y="%d" fill="#222">%s</text>' % (x + 17, y + 11, escape(name)))
        x += 32 + 7 * len(name)
    return parts


def bars(title, names, groups, mark=None):
    """Horizontal bars. `groups`: (label, one value or None per name). `mark`: (value, text), a line to reach per label."""
    left, right, bar, gap = 190, 70, 14, 10
    width = 860
    most = max([value for _, values, *_ in groups for value in values if value] + [1e-9])
    scale = (width - left - right) / most
    parts, y = legend(names, 12, 34), 60
    for label, values, *goal in groups:
        top = y
        shown = [(at, value) for at, value in enumerate(values) if value is not None]
        for at, value in shown:
            parts.append('<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>' % (left, y, max(value * scale, 1), bar, COLOURS[at % len(COLOURS)]))
            parts.append('<text x="%.1f" y="%d" fill="#444" font-size="11">%s</text>' % (left + value * scale + 4, y + 11, number(value)))
            y += bar + 1
        parts.append('<text x="%d" y="%.1f" text-anchor="end" fill="#222">%s</text>' % (left - 8, (top + y) / 2 + 3, escape(label)))
        if goal and goal[0]:
            x = left + goal[0] * scale
            parts.append('<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#b00020" stroke-width="2"/>' % (x, x, top - 2, y + 1))
        y += gap
    if mark:
        parts.append('<text x="%d" y="%d" fill="#b00020" font-size="11">| %s</text>' % (left, y + 4, escape(mark)))
        y += 18
    parts.append('<line x1="%d" x2="%d" y1="54" y2="%d" stroke="#888"/>' % (left, left, y - gap + 4))
    return page(width, y + 8, title, parts)


def lines(title, names, xs, series, x_name):
    """Lines over evenly spaced points; `series`: one list of values (or None) per name."""
    left, top, width, height = 70, 64, 760, 300
    most = max([value for each in series for value in each if value is not None] + [1e-9])
    x = lambda at: left + at * (width - left - 40) / max(len(xs) - 1, 1)
    y = lambda value: top + height * (1 - value / most)
    parts = legend(names, 12, 34)
    for part in range(5):
        value = most * part / 4
        parts.append('<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/>' % (left, width - 40, y(value), y(value)))
        parts.append('<text x="%d" y="%.1f" text-anchor="end" fill="#444">%s</text>' % (left - 6, y(value) + 4, number(value)))
    for at, label in enumerate(xs):
        parts.append('<text x="%.1f" y="%d" text-anchor="middle" fill="#444">%s</text>' % (x(at), top + height + 18, escape(str(label))))
    for which, values in enumerate(series):
        points = [(x(at), y(value)) for at, value in enumerate(values) if value is not None]
        colour = COLOURS[which % len(COLOURS)]
        parts.append('<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/>' % (colour, " ".join("%.1f,%.1f" % point for point in points)))
        parts += ['<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>' % (*point, colour) for point in points]
    parts.append('<text x="%.1f" y="%d" text-anchor="middle" fill="#222">%s</text>' % ((left + width) / 2, top + height + 38, escape(x_name)))
    return page(width, top + height + 50, title, parts)
