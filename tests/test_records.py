"""Are the records of published weights true, and do their addresses lead to the files?"""

import re
from dataclasses import replace
from email.message import Message
from urllib.request import Request
from urllib.response import addinfourl

import pytest
import timm
import torch
from product import ARCHS, names_of
from published import ARCH, NUM_TENSORS, official_inceptionnext
from torch import nn
from web import serve

import backbones
from backbones import ConvNeXt, InceptionNeXt
from backbones.download import cached_path
from backbones.records import PublishedWeights
from backbones.serialization import CheckpointError
from backbones.weights import WEIGHTS, load_pretrained


@pytest.fixture(scope='module')
def published() -> dict[str, torch.Tensor]:
    return official_inceptionnext(ARCH)


def test_unknown_names_list_the_records():
    with pytest.raises(CheckpointError, match='inceptionnext_atto'):
        load_pretrained(InceptionNeXt(ARCH), 'inceptionnext_nano')


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A server of ``tmp_path``; downloads go to ``tmp_path / 'hub'``."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    with serve(tmp_path) as running:
        yield running


def test_a_url_is_fetched(published, tmp_path, web):
    torch.save(published, tmp_path / 'weights.pth')
    report = load_pretrained(InceptionNeXt(ARCH), f'{web.url}/weights.pth')
    assert len(report.loaded) == NUM_TENSORS
    assert cached_path(f'{web.url}/weights.pth').read_bytes() == (tmp_path / 'weights.pth').read_bytes()


def test_a_url_that_fails_says_where_to_put_the_file(published, web):
    with pytest.raises(CheckpointError, match='could not be downloaded') as caught:
        load_pretrained(InceptionNeXt(ARCH), f'{web.url}/absent.pth')
    place = cached_path(f'{web.url}/absent.pth')
    assert str(place) in str(caught.value)
    torch.save(published, place)
    assert len(load_pretrained(InceptionNeXt(ARCH), f'{web.url}/absent.pth').loaded) == NUM_TENSORS


@pytest.fixture
def fake_record(web, monkeypatch):
    """A record of Atto with a mirror, both in ``tmp_path``; nothing is there yet."""
    record = replace(
        WEIGHTS['inceptionnext_atto'], url=f'{web.url}/official.pth', mirrors=(f'{web.url}/mirror.pth',), hub_id=None
    )
    monkeypatch.setitem(WEIGHTS, 'fake', record)
    return record


def test_a_mirror_is_tried_when_the_first_address_fails(fake_record, published, tmp_path):
    torch.save(published, tmp_path / 'mirror.pth')
    model = InceptionNeXt(ARCH)
    assert len(load_pretrained(model, 'fake').loaded) == NUM_TENSORS
    assert cached_path(fake_record.mirrors[0]).is_file() and not cached_path(fake_record.url).exists()
    (tmp_path / 'mirror.pth').unlink()
    assert len(load_pretrained(model, 'fake').loaded) == NUM_TENSORS  # from the cache, whichever address it came from


def test_every_address_that_fails_is_named(fake_record):
    with pytest.raises(CheckpointError, match='could not be downloaded') as caught:
        load_pretrained(InceptionNeXt(ARCH), 'fake')
    cause, remedy = str(caught.value).split('\n')
    assert fake_record.url in cause and fake_record.mirrors[0] in cause
    assert str(cached_path(fake_record.url)) in remedy


@pytest.mark.parametrize('name', [name for name in WEIGHTS if name.startswith('fasternet')])
def test_the_accuracy_of_fasternet_is_the_one_in_its_file_name(name):
    accuracy = float(WEIGHTS[name].url.split('val_acc1.')[1].removesuffix('.pth'))
    assert WEIGHTS[name].top1 == round(accuracy, 1)


def test_a_record_of_another_family_is_refused_before_it_is_fetched():
    with pytest.raises(CheckpointError, match=r'fasternet_t0.* FasterNet, .*InceptionNeXt\.\n.*inceptionnext_atto'):
        load_pretrained(InceptionNeXt(ARCH), 'fasternet_t0')


LICENCES = {  # of the repository that a file comes from
    'https://github.com/sail-sg/inceptionnext/': 'Apache-2.0',
    'https://github.com/JierunChen/FasterNet/': 'NOASSERTION',
    'https://dl.fbaipublicfiles.com/convnext/': 'MIT',
}


def published_network(record: PublishedWeights) -> tuple[int, dict[str, torch.Tensor]]:
    """Parameters with the classifier, and the tensors of timm's or our network without later stages, all 0.5."""
    with torch.device('meta'):
        if record.hub_id:
            model = timm.create_model(record.hub_id.split('/')[1])
        else:  # timm has no such weights; all of them are of ConvNeXt, whose classifier is a norm and a layer
            model = ConvNeXt(record.arch)
            channels = model.out_channels[-1]
            model.head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 1000))
    num_params = sum(p.numel() for p in model.parameters())
    first = {key: value for key, value in model.state_dict().items() if not re.match(r'stages\.[1-9]', key)}
    return num_params, {key: torch.tensor(0.5).expand(value.shape) for key, value in first.items()}


@pytest.mark.parametrize('name', WEIGHTS)
def test_records_are_true(name, tmp_path, monkeypatch):
    """A record's size is that of the network it names, and its name reaches the authors' file."""
    record = WEIGHTS[name]
    num_params, state = published_network(record)
    assert num_params == record.num_params
    assert record.resolution in (224, 384)
    assert record.sha256 is None or re.fullmatch('[0-9a-f]{64}', record.sha256)
    assert record.top1 is None if name.endswith('_noema') else 70 < record.top1 < 90
    assert [licence for start, licence in LICENCES.items() if record.url.startswith(start)] == [record.licence]
    asked = []

    def answer(request: Request, timeout: float) -> addinfourl:
        asked.append(request.full_url)
        torch.save(state, tmp_path / 'file')
        return addinfourl((tmp_path / 'file').open('rb'), Message(), request.full_url)

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr('backbones.download.urlopen', answer)
    # The first stage tells whether the file is read; all stages are compared with timm's elsewhere.
    backbone = getattr(backbones, record.family)(
        record.arch, out_indices=(0,), init_cfg=dict(type='Pretrained', checkpoint=name)
    )
    backbone.init_weights()
    assert asked == [record.url]
    assert all((value == 0.5).all() for value in backbone.state_dict().values() if value.is_floating_point())


def test_every_arch_has_published_weights():
    assert {(record.family, record.arch) for record in WEIGHTS.values()} == names_of(ARCHS)
