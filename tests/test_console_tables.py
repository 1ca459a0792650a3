"""Are tables aligned and complete on any screen, whatever is in their cells?"""

import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from dense.console import tables
from dense.console.tables import markdown, named_numbers, named_texts, plain

ROWS = [['a', '1'], ['long name', '20.5']]


def test_columns_of_names_and_numbers():
    assert plain(ROWS, header=['x', 'y']) == 'x             y\na             1\nlong name  20.5'
    assert plain(ROWS, texts=(0, 1)) == 'a          1\nlong name  20.5'
    assert plain([], header=['x', 'y']) == 'x  y'
    assert plain([]) == named_numbers({}) == ''


def test_characters_of_double_width_stay_in_line():
    lines = plain([['宽度', '1'], ['width', '20']]).splitlines()
    assert {cell_len(line) for line in lines} == {len('width  20')}


@pytest.mark.parametrize('cell', ['[IN] Table 6', '[bold]', ':smile:', 'x' * 1000])
def test_cells_are_shown_as_they_are(cell, monkeypatch):
    monkeypatch.setenv('COLUMNS', '40')
    monkeypatch.setenv('FORCE_COLOR', '1')
    assert plain([[cell, '1']]) == f'{cell}  1'


def test_numbers_below_each_other():
    assert named_numbers({'mIoU': 50.0, 'a': -1}) == 'mIoU  50.0000\na     -1.0000'
    assert named_numbers({'bolt': 0.12345}, digits=3) == 'bolt  0.123'


TEXTS = [('one', 'a few words that do not fit'), ('longer', 'short'), ('none', '')]


def test_texts_go_on_in_their_column():
    expected = 'one     a few words that do\n        not fit\nlonger  short\nnone'
    assert named_texts(TEXTS, width=28) == expected


def test_texts_stand_below_long_names():
    expected = 'one\n    a few words\n    that do not\n    fit\nlonger\n    short\nnone'
    assert named_texts(TEXTS, width=15) == expected


@pytest.mark.parametrize('width', [20, 80])
def test_words_stay_whole(width):
    words = ['an_operator_with_a_long_name', 'well-known']
    assert named_texts([('name', ' '.join(words))], width).split() == ['name', *words]


def test_markdown():
    lines = markdown(ROWS, header=['x', 'y']).splitlines()
    assert lines == ['| x | y |', '| --- | --: |', '| a | 1 |', '| long name | 20.5 |']
    assert markdown(ROWS, header=['x', 'y'], texts=(0, 1)).splitlines()[1] == '| --- | --- |'


def test_texts_need_no_package():
    """The page about a broken installation is made of them."""
    folder = Path(tables.__file__).parent
    code = 'import tables; print(tables.named_texts([("a", "b")], 80))'
    done = subprocess.run([sys.executable, '-S', '-c', code], cwd=folder, capture_output=True, text=True)
    assert done.stdout == 'a  b\n', done.stderr
