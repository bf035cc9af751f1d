"""Where the cgroup2 tree is, and the order of hooks."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.agent.datapath import cgroup
from services.common.errors import NotFound


@pytest.mark.parametrize(
    ("mounts", "found"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "/sys/fs/cgroup"),
        (
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n",
            "/sys/fs/cgroup/unified",
        ),
        ("cgroup2 /with\\040space cgroup2 rw 0 0\n", "/with space"),
    ],
)
def test_the_tree_is_where_the_mounts_say(tmp_path: Path, mounts: str, found: str) -> None:
    (tmp_path / "mounts").write_text(mounts)
    assert cgroup.find_cgroup2(tmp_path / "mounts") == Path(found)


def test_a_machine_without_it_is_told_which_setting_matters(tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n")
    with pytest.raises(NotFound, match="cgroup_root"):
        cgroup.find_cgroup2(tmp_path / "mounts")


def test_nothing_is_translated_that_could_not_be_translated_back() -> None:
    order = cgroup.SocketHooks(Path(), Path())._order
    ways = ["there" if "connect" in name or "sendmsg" in name else "back" for name in order]
    assert ways == sorted(ways)


def test_a_containers_own_part_is_not_taken_for_the_nodes_tree(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "mounts").write_text(f"cgroup2 {tmp_path / 'tree'} cgroup2 rw 0 0\n")
    assert cgroup.whole_tree(tmp_path / "mounts") == tmp_path / "tree"
    (tmp_path / "tree" / "cgroup.type").write_text("domain\n")
    with pytest.raises(NotFound, match="mount the node's tree"):
        cgroup.whole_tree(tmp_path / "mounts")
