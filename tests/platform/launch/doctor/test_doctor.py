"""The doctor's checks, each on something that is really broken."""

from __future__ import annotations

import http.server
import io
import os
import re
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.platform.config.trees import load_experiment
from tests.platform.train.trained import alone

from causalfusion_platform.config.schema import Experiment
from causalfusion_platform.data.digits import write_digits
from causalfusion_platform.launch import doctor
from causalfusion_platform.launch.cluster.resources import Resources
from causalfusion_platform.launch.doctor import machine, services, step, storage, task
from causalfusion_platform.launch.doctor.check import Check
from causalfusion_platform.launch.doctor.step import check_step
from causalfusion_platform.tasks import open_task
from causalfusion_platform.train.memory import estimate


def smoke(*overrides: str) -> Experiment:
    return load_experiment("smoke", list(overrides))


def leaves_nothing(folder: Path) -> bool:
    return list(folder.iterdir()) == []


# Storage.


def test_storage_in_order(own_folder: Path) -> None:
    found = storage.check_storage(smoke())
    assert found.verdict == "ok", found
    assert str(own_folder) in found.line
    assert leaves_nothing(own_folder)


def test_storage_that_takes_no_files(own_folder: Path) -> None:
    found = storage.check_storage(smoke("runs=/proc/self/runs"))  # nobody may write there, not even root
    assert found.verdict == "FAIL"
    assert "runs=FOLDER" in found.advice


def test_a_file_where_the_folder_should_be(own_folder: Path) -> None:
    (own_folder / "runs").write_text("")
    found = storage.check_storage(smoke())
    assert found.verdict == "FAIL"
    assert "Not a directory" in found.line


def test_storage_that_is_full(own_folder: Path) -> None:
    # A limit on the size of files stands in for the disk.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        found = storage.check_storage(smoke())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found.verdict == "FAIL"
    assert "File too large" in found.line
    assert leaves_nothing(own_folder)


def test_disk_for_the_checkpoints() -> None:
    assert storage.check_disk(smoke()).verdict == "ok"
    found = storage.check_disk(
        smoke("model.preset=H-system-256", "train.images=100000000", "train.keep_checkpoints=100000")
    )
    assert found.verdict == "FAIL"
    assert "train.keep_checkpoints=1" in found.advice


# Shards.


def test_shards(own_folder: Path) -> None:
    folder = own_folder / "shards" / "digits"
    assert storage.check_shards(smoke()).verdict == "ok"  # made when training starts
    missing = storage.check_shards(smoke("data.prepare=false"))
    assert missing.verdict == "FAIL"
    assert "causalfusion data digits" in missing.advice
    manifest = write_digits(folder)
    assert storage.check_shards(smoke()).verdict == "ok"
    assert storage.check_shards(smoke("model.input_size=16")).verdict == "FAIL"
    shard = folder / manifest.shards[0].file
    shard.write_bytes(shard.read_bytes()[:-100])
    damaged = storage.check_shards(smoke())
    assert damaged.verdict == "FAIL"
    assert manifest.shards[0].file in damaged.line
    assert "--quarantine" in damaged.advice
    assert storage.check_shards(smoke("data.max_bad_rows=0.99")).verdict == "warn"


# MLflow.


def test_sqlite(own_folder: Path) -> None:
    found = storage.check_mlflow(smoke())
    assert found.verdict == "ok", found
    assert leaves_nothing(own_folder)
    (own_folder / "file").write_text("")
    assert storage.check_mlflow(smoke("tracking.uri=sqlite:///file/mlflow.db")).verdict == "FAIL"
    assert storage.check_mlflow(smoke("tracking.uri=sqlite:////proc/self/mlflow.db")).verdict == "FAIL"


@pytest.fixture
def taken_port() -> Iterator[int]:
    """Return a port that something listens on, which never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_no_mlflow_server(closed_port: int) -> None:
    found = storage.check_mlflow(smoke(f"tracking.uri=http://127.0.0.1:{closed_port}"))
    assert found.verdict == "FAIL"
    assert "Connection refused" in found.line
    assert f"mlflow server --host 127.0.0.1 --port {closed_port}" in found.advice


@pytest.fixture
def other_server() -> Iterator[int]:
    """Return the port of a web server that is healthy, and not MLflow or Ray."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"OK")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join(timeout=10)
    server.server_close()


def test_another_server_in_the_place_of_mlflow(other_server: int) -> None:
    assert storage.check_mlflow(smoke(f"tracking.uri=http://127.0.0.1:{other_server}")).verdict == "FAIL"


# Ray.


def test_the_token_must_be_private(tmp_path: Path) -> None:
    token = tmp_path / "auth_token"
    assert services.check_token(token).verdict == "ok"
    token.write_text("secret")
    for mode, verdict in ((0o600, "ok"), (0o400, "ok"), (0o644, "FAIL"), (0o640, "FAIL"), (0o602, "FAIL")):
        token.chmod(mode)
        found = services.check_token(token)
        assert found.verdict == verdict, oct(mode)
        assert (found.advice == f"chmod 600 {token}") == (verdict == "FAIL")
        assert "secret" not in found.line


def test_ports(taken_port: int, closed_port: int) -> None:
    assert services.check_ports([(closed_port, "x")]).verdict == "ok"
    found = services.check_ports([(closed_port, "x"), (taken_port, "causalfusion ui --port 1")])
    assert found == Check("ports", "warn", f"in use: {taken_port}", "causalfusion ui --port 1")


def test_a_cluster_that_does_not_answer(closed_port: int, taken_port: int, other_server: int) -> None:
    experiment = smoke()
    assert services.check_ray(experiment, None).verdict == "ok"
    for address, seconds in (
        (f"http://127.0.0.1:{closed_port}", 5),
        (f"http://127.0.0.1:{other_server}", 5),
        (f"127.0.0.1:{taken_port}", 1),
        ("no address", 100),
    ):
        found = services.check_ray(experiment, address, seconds)
        assert found.verdict == "FAIL"
        assert address in found.line
        assert "unset RAY_ADDRESS" in found.advice


@pytest.mark.parametrize(("cpus", "grows", "verdict"), [(64, False, "ok"), (0, False, "FAIL"), (0, True, "ok")])
def test_a_cluster_that_can_grow_needs_no_nodes_yet(cpus: float, grows: bool, verdict: str) -> None:
    found = services.compare(smoke(), "10.0.0.1:6379", Resources.of(cpus), grows=grows)
    assert found.verdict == verdict
    assert f"10.0.0.1:6379: {cpus} CPUs, 0 GPUs; wanted" in found.line
    assert ("autoscaler" in found.line) == (grows and not cpus)


# The machine.


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of an installed package that asks for what is not there."""
    folder = tmp_path / "site" / "hopeful-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: hopeful\nVersion: 1.0\nRequires-Python: >=4\n"
        "Requires-Dist: numpy<1\nRequires-Dist: no-such-package[fast]>=2\nRequires-Dist: pyyaml\n"
        "Requires-Dist: nothing>=9; extra == 'dev'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return "hopeful"


def test_versions(package: str) -> None:
    assert machine.check_versions().verdict == "ok"
    found = machine.check_versions(package)
    assert found.verdict == "FAIL"
    assert "wanted <1" in found.line
    assert "no-such-package none, wanted >=2" in found.line
    assert "pyyaml" not in found.line
    assert "nothing" not in found.line
    assert found.advice == "pip install 'numpy<1' 'no-such-package[fast]>=2'"


def test_python(package: str) -> None:
    assert machine.check_python().verdict == "ok"
    assert machine.check_python(package).verdict == "FAIL"


def test_a_compiler_that_is_missing_or_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_compiler(smoke(), ("no-such-compiler",)).verdict == "warn"
    assert machine.check_compiler(smoke("train.compile=true"), ("no-such-compiler",)).verdict == "FAIL"
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\necho 'cannot find -lstdc++' >&2\nexit 1\n")
    liar = tmp_path / "liar-c++"
    liar.write_text('#!/bin/sh\nprintf "#!/bin/sh\\nexit 3\\n" > "$3"; chmod +x "$3"\n')
    for script in (broken, liar):
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = machine.check_compiler(smoke("train.compile=true"), ("broken-c++",))
    assert found.verdict == "FAIL"
    assert "cannot find -lstdc++" in found.line
    assert "wrong answer" in machine.check_compiler(smoke(), ("liar-c++",)).line


def test_no_gpu_where_one_is_wanted() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert machine.check_gpu(smoke(), elsewhere=False).verdict == "ok"
    assert machine.check_gpu(smoke("train.gpus_per_worker=1"), elsewhere=False).verdict == "FAIL"
    assert machine.check_gpu(smoke("train.gpus_per_worker=1"), elsewhere=True).verdict == "warn"


def test_memory_that_does_not_suffice() -> None:
    experiment = smoke(
        "model.preset=XL-system-256",
        "train.gpus_per_worker=1",
        "train.num_workers=8",
        "train.precision=bf16_weights",
        "train.global_batch_size=128",
        "train.micro_batch_size=8",  # two passes, which add up their gradients
    )
    need = {stage: estimate(open_task(experiment), workers=8, zero_stage=stage).total for stage in (1, 2, 3)}
    assert need[1] > need[2] > need[3]

    def check(available: float) -> Check:
        return machine.check_memory(experiment, elsewhere=False, available=available)

    assert check(need[1]).verdict == "ok"
    assert (check(need[1] - 1).verdict, check(need[1] - 1).advice) == ("FAIL", "train.zero_stage=2")
    assert check(need[2] - 1).advice == "train.zero_stage=3"
    assert "activation_checkpointing" in check(need[3] - 1).advice
    assert machine.check_memory(experiment, elsewhere=True).verdict == "ok"


def test_memory_of_all_workers_of_a_machine_counts() -> None:
    one, four = smoke("train.zero_stage=0"), smoke("train.zero_stage=0", "train.num_workers=4")
    room = 2.5 * 2**30  # the libraries alone take 1 GiB of each
    assert machine.check_memory(one, elsewhere=False, available=room).verdict == "ok"
    assert machine.check_memory(four, elsewhere=False, available=room).verdict == "FAIL"


def test_available_memory_is_the_systems() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**20 < machine.available_memory() <= total


# The dry step.


def test_a_step_that_crashes_hangs_or_fails() -> None:
    def check(code: str, seconds: float = 60) -> Check:
        return check_step(smoke(), seconds, (sys.executable, "-c", code))

    killed = check("import os; os.kill(os.getpid(), 11)")
    assert killed.verdict == "FAIL"
    assert "killed by signal 11" in killed.line
    assert "not done after 1 s" in check("import time; time.sleep(60)", 1).line
    assert "status 1: ValueError: no" in check("raise ValueError('no')").line
    assert check("pass").verdict == "FAIL"


@pytest.fixture
def checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Check]:
    """Return what the doctor makes of a step that is made in this process, without seconds of imports."""
    alone()
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)

    def check(*overrides: str) -> Check:
        experiment = smoke("train.num_workers=1", "train.global_batch_size=2", *overrides)
        monkeypatch.setattr(sys, "stdin", io.StringIO(experiment.model_dump_json()))
        capsys.readouterr()
        step.main()
        (tmp_path / "said").write_text(capsys.readouterr().out)
        return check_step(experiment, command=("cat", str(tmp_path / "said")))

    return check


def test_a_real_step(checked: Callable[..., Check]) -> None:
    found = checked("train.precision=fp32")
    assert (found.verdict, found.advice) == ("ok", "")
    assert re.match(r"loss \d\.\d{3} in [\d.]+ s, fp32, ", found.line)


def test_a_real_step_that_the_machine_refuses(checked: Callable[..., Check]) -> None:
    found = checked("train.precision=fp16")
    assert found.verdict == "FAIL"
    assert "no fp16 arithmetic" in found.line
    assert "train.precision=bf16_weights" in found.advice


def test_a_real_step_that_diverges(checked: Callable[..., Check]) -> None:
    found = checked("optim.base_lr=1e42", "train.precision=fp32")
    assert found.verdict == "FAIL"
    assert "finite" in found.advice


# The task.

TOY = "task=tests.platform.tasks.toy:LatentMean"


def test_a_step_of_another_task(checked: Callable[..., Check]) -> None:
    found = checked("train.precision=fp32", TOY)
    assert (found.verdict, found.advice) == ("ok", "")


def test_checks_are_of_the_experiments_own_task(own_folder: Path) -> None:
    assert task.check_task(smoke(TOY)).line.startswith("tests.platform.tasks.toy:LatentMean: 1,073 parameters")
    assert "without activations" in machine.check_memory(smoke(TOY), elsewhere=True).line
    write_digits(own_folder / "shards" / "digits")
    classes = "model.num_classes=3"  # the toy does not look at classes
    assert storage.check_shards(smoke(classes)).verdict == "FAIL"
    assert storage.check_shards(smoke(classes, TOY)).verdict == "ok"


def test_a_task_that_is_not_there_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("check_python", "check_versions", "check_compiler", "check_mlflow", "check_ports"):
        monkeypatch.setattr(doctor, name, lambda *_: Check("other", "ok", ""))
    begun: list[str] = []
    begin = lambda name, done, total: begun.append(name)  # noqa: E731
    found = {check.name: check for check in doctor.diagnose(smoke("task=class_to_imgae"), None, begin)}
    assert begun[:2] == ["python", "packages"]
    assert not {"disk", "shards", "memory", "dry step"} & {*begun}
    assert found["task"].verdict == "FAIL"
    assert "allowed: class_to_image" in found["task"].advice
    assert "storage" in found
    assert not {"disk", "shards", "memory", "dry step"} & found.keys()
