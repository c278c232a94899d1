"""A comparison as one HTML page: what was run, plot, table, intervals, and what they mean."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from specprune_ros.pruning.params import PruningParams
from specprune_ros.sim.evaluation.plot import draw, draw_curves
from specprune_ros.sim.evaluation.report import HEAD, LEGEND, cells
from specprune_ros.sim.evaluation.settings import EvaluationSetting

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 76rem }
body { margin: 2rem auto; padding: 0 1rem }
pre { background: #f0f3f6; padding: .8rem; overflow-x: auto; white-space: pre-wrap }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
div { overflow-x: auto } img { max-width: 100% }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #d9e2ec }
th, td { white-space: nowrap }
th:first-child, td:first-child { text-align: left }
caption, .small { text-align: left; color: #52606d; font-size: 13px }
"""


def write_page(
    path: Path,
    report: Mapping[str, Any],
    settings: Sequence[EvaluationSetting],
    curves: bool = False,
) -> None:
    """Write ``report`` (what ``specprune eval --json`` writes) as a page that needs no other file.

    ``settings`` are the rows that were compared; ``curves`` draws a line per method.
    """
    rows = report['rows']
    tasks = list(dict.fromkeys(row['task'] for row in rows))
    facts = {
        'seeds': report.get('seeds') or report.get('suite'),
        'rows of a chunk played': report['executed'],
        'weights': report['weights'],
        'revision': report['revision'] or 'no git checkout',
        'code of the methods': report['code'],
        'machine': report['machine']['cpu'],
        'PyTorch': report['torch'],
        'date': report['date'],
        'episodes': f'reused {report["reused"]}, played {report["played"]}',
    }
    parts = [
        f'<h1>Pruning methods in closed loop: {escape(str(report["table"]))}</h1>',
        f'<pre>{escape(report["command"])}</pre>',
        _table('', ('', ''), [(name, str(value)) for name, value in facts.items()]),
        f'<p><img alt="success against operations" src="{_image(rows, curves)}"></p>',
        *(_table(task, HEAD, [cells(row) for row in rows if row['task'] == task])
          for task in reversed(tasks)),
        f'<p class="small">{escape(LEGEND)}</p>',
        _table('what was changed from the defaults', ('row', 'parameters'),
               [(setting.label, _changes(setting)) for setting in settings]),
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<title>{escape(str(report["table"]))}: closed-loop success</title>'
        f'<style>{STYLE}</style>\n' + '\n'.join(parts) + '\n</html>\n',
        encoding='utf-8',
    )


def _table(caption: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def row(cell: str, texts: Sequence[str]) -> str:
        return '<tr>' + ''.join(f'<{cell}>{escape(text)}</{cell}>' for text in texts) + '</tr>'

    top = row('th', head) if any(head) else ''
    body = '\n'.join(row('td', line) for line in lines)
    return f'<div><table><caption>{escape(caption)}</caption>\n{top}\n{body}</table></div>'


def _image(rows: Sequence[dict[str, Any]], curves: bool) -> str:
    with TemporaryDirectory() as folder:
        file = Path(folder) / 'plot.png'
        (draw_curves if curves else draw)(rows, file)
        return f'data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}'


def _changes(setting: EvaluationSetting) -> str:
    """The parameters of a row that are not the defaults, and its control."""
    standard, params = PruningParams().as_dict(), setting.params.as_dict()
    changed = {name: value for name, value in params.items() if value != standard[name]}
    words = [f'{name}={json.dumps(value)}' for name, value in changed.items()]
    return ', '.join(([] if setting.control == 'instructed' else [setting.control]) + words)
