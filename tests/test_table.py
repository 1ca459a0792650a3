"""Do the tables of models list every config, with its current size?"""

import runpy
from pathlib import Path

import pytest
from leaves import BY_NAME, EXPECTED

from dense.analysis.complexity import Complexity, Cost
from dense.analysis.published import PUBLISHED
from dense.analysis.table import (
    END,
    GROUPS,
    MODELS_PAGE,
    README,
    START,
    Model,
    describe,
    models_page,
    outdated,
    readme_leaves,
    readme_table,
    replace_between,
    row,
    table_leaves,
    update,
)
from dense.errors import UserError

OWN = {'real data at small size', 'mini data set'}
SAMPLE = [  # one of each table, the smallest
    'classifier_fasternet-t0_8xb512-300e_in1k-224x224',
    'mask-rcnn_fasternet-s_fpn_1x_coco',
    'mask-rcnn_r50_fpn_ms-3x_coco',
    'cascade-mask-rcnn_inceptionnext-t_fpn_amp-ms-crop-3x_coco',
    'retinanet_inceptionnext-a_fpn_1x_coco',
    'upernet_inceptionnext-a_4xb4-160k_ade20k-512x512',
    'semantic-fpn_inceptionnext-t_8xb4-40k_ade20k-512x512',
]


def cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_every_config_of_the_papers_stands_in_one_table():
    expected = {name for table, names in EXPECTED.items() if table not in OWN for name in names}
    names = [path.stem for path in table_leaves()]
    assert len(names) == len(set(names))
    assert set(names) == expected
    page = MODELS_PAGE.read_text()
    assert [name for name in names if page.count(f'| [{name}](') != 1] == []
    assert [group.title for group in GROUPS if f'## {group.title}\n' not in page] == []


@pytest.mark.parametrize('name', SAMPLE)
def test_lines_are_up_to_date(name):
    model = describe(BY_NAME[name])
    assert '| ' + ' | '.join(row(model)) + ' |' in MODELS_PAGE.read_text(), 'run tools/table.py'
    if BY_NAME[name] in readme_leaves():
        (line,) = (line for line in readme_table([model]).splitlines() if name in line)
        assert line in README.read_text(), 'run tools/table.py'


def test_the_sample_covers_every_table():
    assert [sum(group.holds(BY_NAME[name]) for name in SAMPLE) for group in GROUPS] == [1] * len(GROUPS)


def test_published_figures_stand_in_the_page():
    """The page against the records; the counts beside them are compared in test_complexity."""
    table = [cells(line) for line in MODELS_PAGE.read_text().splitlines() if '](../configs' in line]
    lines = {line[1].split(']')[0].removeprefix('['): line for line in table}
    assert len(lines) == len(table)
    assert set(lines) == {path.stem for path in table_leaves()}
    for name, published in PUBLISHED.items():
        _, _, _, params, _, macs, score = lines[name]
        for cell, figure in ((params, published.params), (macs, published.macs)):
            assert figure is None or cell.split(' ')[0] == str(figure)
        assert published.score in score


@pytest.mark.slow
def test_both_tables_are_up_to_date(capsys):
    main = runpy.run_path(str(Path(__file__).resolve().parent.parent / 'tools' / 'table.py'))['main']
    assert main(['--check']) == 0, capsys.readouterr().err


@pytest.fixture
def model():
    name = 'mask-rcnn_fasternet-s_fpn_1x_coco'
    count = Complexity(name, (800, 1280), {'all': Cost(48_994_000, 264_770_000_000)})
    return Model(BY_NAME[name], 'FasterNet', 's', count)


def test_a_line(model):
    link = f'[{model.path.stem}](../configs/mask_rcnn/{model.path.name})'
    score = '39.9 / 36.9 box / mask AP [FN] Table 4'
    assert row(model) == ['FasterNet s', link, '48.99', '49.0 (48.99)', '264.8', '258 (264.8)', score]


def test_the_page_explains_what_a_printed_figure_leaves_out(model):
    assert models_page([model]).count('are left out') == 1
    assert readme_table([model]).count('are left out') == 1


def test_update_and_check(model, tmp_path, monkeypatch):
    readme, page = tmp_path / 'README.md', tmp_path / 'models.md'
    readme.write_text(f'before\n{START}\nold\n{END}\nafter\n')
    monkeypatch.setattr('dense.analysis.table.README', readme)
    monkeypatch.setattr('dense.analysis.table.MODELS_PAGE', page)
    assert outdated([model]) == [readme, page]
    assert update([model]) == [readme, page]
    assert outdated([model]) == update([model]) == []
    text = readme.read_text()
    assert text.startswith(f'before\n{START}\n| method') and text.endswith(f'{END}\nafter\n') and 'old' not in text
    page.write_text(page.read_text().replace('48.99 |', '48.98 |'))
    assert outdated([model]) == [page]


@pytest.mark.parametrize('text', ['', START, f'{END} {START}'])
def test_missing_markers(text):
    with pytest.raises(UserError, match='markers'):
        replace_between(text, '')
