"""Which folders become which packages; everything else stands in pyproject.toml.

The commands (``tools/``) and the configs lie at the top of the repository, where a reader looks for them. Names as
general as these two do not belong into site-packages: there they are ``dense_tools`` and ``dense/configs``.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=['backbones*', 'dense*']), 'dense.configs', 'dense_tools'],
    package_dir={'dense.configs': 'configs', 'dense_tools': 'tools'},
    package_data={'backbones': ['py.typed'], 'dense': ['py.typed'], 'dense.configs': ['**/*.py', '**/*.md']},
)
