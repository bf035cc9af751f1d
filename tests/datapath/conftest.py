"""One compile for all tests, also those of clusters and sandboxes; one node per module, emptied before each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.agent.config import Config
from tests.datapath.node import Node
from tests.datapath.walks import Pods, make_pods


@pytest.fixture(scope="session")
def object_cache() -> Path:
    return Path(Config.model_fields["cache_dir"].default)


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
