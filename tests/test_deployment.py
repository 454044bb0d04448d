"""The images, the compose file and the Kubernetes manifests give a process no more rights than it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

DOCKER = Path(__file__).parents[1] / "docker"
MANIFESTS = sorted((DOCKER / "kubernetes").glob("*.yaml"))


def _pods(path: Path) -> list[dict[str, Any]]:
    documents = [document for document in yaml.safe_load_all(path.read_text()) if document]
    return [document["spec"]["template"]["spec"] for document in documents if "template" in document.get("spec", {})]


@pytest.mark.parametrize("path", sorted(DOCKER.glob("*.Dockerfile")), ids=lambda path: path.name)
def test_an_image_does_not_run_as_root(path: Path) -> None:
    users = [line.split()[1] for line in path.read_text().splitlines() if line.startswith("USER ")]
    assert users and users[-1].partition(":")[0] not in ("0", "root")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_pods_are_confined(path: Path) -> None:
    assert _pods(path)
    for pod in _pods(path):
        rights = pod["securityContext"]
        assert rights["runAsNonRoot"] and rights["runAsUser"] > 0
        assert rights["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert "emptyDir" in volumes[mounts["/tmp"]]  # the only place to write besides the volumes of results


def test_compose_is_confined_and_tensorboard_listens_on_loopback() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert services["tensorboard"]["ports"] == ["127.0.0.1:6006:6006"]
