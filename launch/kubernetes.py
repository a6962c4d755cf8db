"""Kubernetes: an indexed Job with a headless Service, and the kubectl commands that create them. Pure.

Pods find each other by torchrun's rendezvous at pod 0. A pod that is told to stop (drain, preemption) checkpoints and
ends with 75: the Job makes it anew, as it does for one whose node is lost; the processes of the other pods then fail
or wait, and meet again with it. A wrong configuration (exit codes 2 and 3) ends the Job at once. Source and
configuration come in a ConfigMap, so the image holds the dependencies only.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

from launch.folder import SOURCE_NAME
from launch.job import Job
from launch.manifest import dump_manifest
from launch.plan import added_environment, agent, meeting_options
from launch.program import Program, read_program
from launch.rendered import Facts, Rendered, Submission
from retro.config.launch import LaunchConfig

#: Where the ConfigMap is mounted, and where the source is unpacked.
MOUNT = "/launch"
_SOURCE = "/tmp/retro-source"
_PORT = 29400
_CONTAINER = "retro"


def render_kubernetes(config: LaunchConfig, job: Job, facts: Facts, kept: str | None) -> Rendered:
    """run.sh, job.yaml and what creates them. kept: name of the kept configuration file, if there is one.

    Raises ConfigError if the command cannot be run like that.
    """
    program = read_program(config, job.command, "python3")
    name = _object_name(job.name, facts.digest)
    carried = ["run.sh", *([SOURCE_NAME] if facts.snapshot else []), *([kept] if kept else [])]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(config, name),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # pods look for pod 0 before it is ready
            "selector": {"batch.kubernetes.io/job-name": name},
        },
    }
    manifest = dump_manifest(service, _job(config, name))
    namespace = [] if config.kubernetes.namespace is None else [f"--namespace={config.kubernetes.namespace}"]
    kubectl = ("kubectl", *namespace, "create")
    contents = [f"--from-file={facts.folder}/{file}" for file in carried]
    submissions = (
        Submission(job.name, (*kubectl, "configmap", name, *contents)),
        Submission(job.name, (*kubectl, f"--filename={facts.folder}/job.yaml")),
    )
    files = (("run.sh", _script(config, program, name, facts)), ("job.yaml", manifest))
    return Rendered(facts.folder, files, "kubectl", submissions)


def _job(config: LaunchConfig, name: str) -> dict[str, Any]:
    kubernetes, wanted, nodes = config.kubernetes, config.resources, config.node_range[1]
    mounts = [{"name": "memory", "mountPath": "/dev/shm"}, {"name": "launch", "mountPath": MOUNT}]
    volumes: list[dict[str, Any]] = [
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": _bytes(kubernetes.shared_memory_gb)}},
        {"name": "launch", "configMap": {"name": name}},
    ]
    for number, (claim, path) in enumerate(kubernetes.claims.items()):
        mounts.append({"name": f"claim-{number}", "mountPath": path})
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
    amounts = {
        **({} if wanted.cpus is None else {"cpu": str(wanted.cpus)}),
        **({} if wanted.memory_gb is None else {"memory": _bytes(wanted.memory_gb)}),
        **({} if wanted.gpus == 0 else {kubernetes.gpu_resource: wanted.gpus}),
    }
    container = {
        "name": _CONTAINER,
        "image": kubernetes.image,
        # A script in the ConfigMap, not in this list, in which Kubernetes would replace $(NAME).
        "command": ["/bin/bash", f"{MOUNT}/run.sh"],
        "env": _environment(config),
        **({"resources": {"requests": amounts, "limits": amounts}} if amounts else {}),
        "volumeMounts": mounts,
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "subdomain": name,
        "terminationGracePeriodSeconds": kubernetes.grace_seconds,
        **({} if kubernetes.service_account is None else {"serviceAccountName": kubernetes.service_account}),
        **({"nodeSelector": kubernetes.node_selector} if kubernetes.node_selector else {}),
        **(
            {"tolerations": [{"key": k, "operator": "Exists"} for k in kubernetes.tolerations]}
            if kubernetes.tolerations
            else {}
        ),
        "containers": [container],
        "volumes": volumes,
    }
    if wanted.gpu_type is not None:
        pod["nodeSelector"] = {**kubernetes.node_selector, "nvidia.com/gpu.product": wanted.gpu_type}
    rules = [
        {"action": "FailJob", "onExitCodes": {"containerName": _CONTAINER, "operator": "In", "values": [2, 3]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
    ]
    spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": config.requeue_limit * nodes,
        "podFailurePolicy": {"rules": rules},
        "template": {"metadata": {"labels": dict(kubernetes.labels)}, "spec": pod},
    }
    if wanted.hours is not None:
        spec["activeDeadlineSeconds"] = max(1, round(wanted.hours * 3600))
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(config, name), "spec": spec}


def _script(config: LaunchConfig, program: Program, name: str, facts: Facts) -> str:
    lines = ["set -euo pipefail"]
    if facts.snapshot:
        lines.append(f"python3 -m tarfile -e {MOUNT}/{SOURCE_NAME} {_SOURCE}")
        lines.append(f"export PYTHONPATH={_SOURCE}${{PYTHONPATH:+:$PYTHONPATH}}")
        if program.kind == "retro":
            lines.append("export PYTHONSAFEPATH=1")
    lines.append(f"cd -- {shlex.quote(config.kubernetes.working_directory)}")
    # exec: the command is the container's first process, and gets the wish to stop itself.
    if config.processes == 1 and config.node_range[1] == 1:
        lines.append(f"exec {shlex.join(program.alone())}")
        return "\n".join(lines) + "\n"
    if config.node_range[1] == 1:
        meeting = ["--standalone"]
    else:
        options = meeting_options(
            config,
            endpoint=f"{name}-0.{name}:{_PORT}",
            is_host="$((JOB_COMPLETION_INDEX == 0))",
            run_id=name,
        )
        meeting = [*options, '--local-addr="$POD_IP"']
    python, m, module, *rest = agent(config, program, [])
    lines.append(f"exec {shlex.join([python, m, module])} {' '.join(meeting)} {shlex.join(rest)}")
    return "\n".join(lines) + "\n"


def _environment(config: LaunchConfig) -> list[dict[str, Any]]:
    cores = config.resources.cpus or config.processes * (config.threads_per_process or 1)
    added = {"PYTHONUNBUFFERED": "1", **added_environment(config, cores)}
    if "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" in added and "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in config.environment:
        added["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(max(1, config.kubernetes.grace_seconds - 10))
    found: list[dict[str, Any]] = [{"name": name, "value": _literal(value)} for name, value in added.items()]
    if config.node_range[1] > 1:
        found.append({"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
    return found + [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": config.kubernetes.secret, "key": name}}}
        for name in config.pass_environment
    ]


def _metadata(config: LaunchConfig, name: str) -> dict[str, Any]:
    kubernetes = config.kubernetes
    return {
        "name": name,
        **({} if kubernetes.namespace is None else {"namespace": kubernetes.namespace}),
        **({"labels": dict(kubernetes.labels)} if kubernetes.labels else {}),
    }


def _object_name(name: str, digest: str) -> str:
    """A DNS label that leaves room for a pod's index."""
    plain = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:40].strip("-")
    plain = plain if plain[:1].isalpha() else f"job-{plain}".strip("-")  # a Service's name begins with a letter
    return f"{plain}-{digest}"


def _literal(value: str) -> str:
    """A variable's value, in which Kubernetes would replace $(NAME), as it is meant."""
    return value.replace("$", "$$")


def _bytes(gigabytes: float) -> str:
    return f"{max(1, round(gigabytes * 1024))}Mi"
