"""Checkpoints as the authors published them, with random weights."""

import re

import timm
import torch

# The smallest InceptionNeXt.
ARCH = 'atto'
NUM_TENSORS = 220  # of the backbone; the classifier has 6 more


def official_inceptionnext(arch: str) -> dict[str, torch.Tensor]:
    """timm's weights, whose names are the authors'; the same numbers at every call."""
    torch.manual_seed(0)
    return timm.create_model(f'inception_next_{arch}').state_dict()


def official_fasternet(arch: str, device: str = 'cpu') -> dict[str, torch.Tensor]:
    """timm's weights under the authors' names: stages and mergings alternate in one list, the head has other names."""
    names = {'conv_head.weight': 'avgpool_pre_head.1.weight', 'classifier.weight': 'head.weight'}
    names |= {'classifier.bias': 'head.bias'}

    def rename(key: str) -> str:
        if merging := re.fullmatch(r'stages\.(\d)\.downsample\.(.+)', key):
            return f'stages.{2 * int(merging[1]) - 1}.{merging[2]}'
        if block := re.fullmatch(r'stages\.(\d)\.(blocks.+)', key):
            return f'stages.{2 * int(block[1])}.{block[2]}'
        return names.get(key, key)

    with torch.device(device):
        state = timm.create_model(f'fasternet_{arch}').state_dict()
    return {rename(key): value for key, value in state.items()}
