"""One compile for all datapath tests; one node per module, emptied before each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.datapath.node import Node
from tests.datapath.walks import Pods, make_pods


@pytest.fixture(scope="session")
def object_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects")


@pytest.fixture(scope="module")
def module_node(object_cache: Path) -> Iterator[Node]:
    node = Node(object_cache)
    try:
        yield node
    finally:
        node.close()


@pytest.fixture
def node(module_node: Node) -> Node:
    module_node.reset()
    return module_node


@pytest.fixture
def pods(node: Node) -> Pods:
    return make_pods(node)
