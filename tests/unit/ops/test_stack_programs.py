import os
import subprocess
from pathlib import Path

from ops.home import Home
from ops.processes import end_processes, find_process
from ops.programs import Program, last_lines, log_path, write_script
from ops.stack.native import in_waves
from ops.stack.supervisor import render_config


def a_program(
    *,
    name: str = "thing-1",
    argv: tuple[str, ...] = ("/bin/true",),
    environment: dict[str, str] | None = None,
    inputs: str = "",
) -> Program:
    return Program(name=name, argv=argv, environment=environment or {}, probe=lambda: None, inputs=inputs)


def a_home(path: Path) -> Home:
    home = Home(path)
    home.create()
    return home


def test_a_script_becomes_the_program_with_exactly_its_environment(tmp_path: Path) -> None:
    home = a_home(tmp_path / "with space")
    program = a_program(argv=("/usr/bin/env",), environment={"A": "it's $HOME; `x`"})
    environment = {"SUPERVISOR_SERVER_URL": "unix://x", "OLDPWD": "/"}
    ran = subprocess.run(
        ["/bin/sh", write_script(home, program)], env=environment, capture_output=True, text=True, check=True
    )
    told = dict(line.split("=", 1) for line in ran.stdout.splitlines())
    assert told["A"] == "it's $HOME; `x`"
    assert set(told) <= {"A", "PATH", "PWD", "_"}


def test_the_recorded_pid_is_the_programs_own_and_found_again(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    with subprocess.Popen(["/bin/sh", write_script(home, a_program(argv=("/bin/sleep", "60")))]) as process:
        while not (home.pids / "thing-1").exists():
            os.sched_yield()
        while find_process(home, "thing-1") is None:
            os.sched_yield()
        assert int((home.pids / "thing-1").read_text()) == process.pid
        end_processes([process.pid], patience_s=0)
        process.wait()
    assert find_process(home, "thing-1") is None


def test_another_process_under_a_recorded_pid_is_not_taken_for_ours(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    (home.run / "thing-1.born").write_text(f"{os.getpid()} 1")
    assert find_process(home, "thing-1") is None


def test_a_record_cut_short_by_a_crash_names_nobody(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    (home.run / "thing-1.born").write_text("")
    assert find_process(home, "thing-1") is None


def test_a_program_that_reads_other_inputs_has_another_fingerprint() -> None:
    prints = {a_program().fingerprint, a_program(inputs="x").fingerprint, a_program(environment={"A": "1"}).fingerprint}
    assert len(prints) == 3
    assert a_program().fingerprint == a_program().fingerprint


def test_the_supervisors_configuration_holds_no_secret(tmp_path: Path) -> None:
    program = a_program(environment={"SECRET": "hunter2"}, argv=("/bin/x", "--token", "hunter3"))
    config = render_config(a_home(tmp_path), [program])
    assert "[program:thing-1]" in config
    assert "hunter" not in config


def test_a_percent_sign_in_the_path_is_written_literally(tmp_path: Path) -> None:
    assert "100%%/run/thing-1.sh" in render_config(a_home(tmp_path / "100%"), [a_program()])


def test_the_last_lines_of_a_log_are_shown(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    log_path(home, "thing-1").write_text("\n".join(map(str, range(100))))
    assert last_lines(home, "thing-1", 2) == "98\n99"
    assert last_lines(home, "other-1") == "(no log yet)"


def test_replicas_that_run_are_restarted_one_after_the_other_and_all_else_at_once() -> None:
    due = [a_program(name=name) for name in ("gateway-1", "gateway-2", "billing-1", "agents-2")]

    def order(*alive: str) -> list[list[str]]:
        return [[program.name for program in wave] for wave in in_waves(due, alive=alive)]

    assert order() == [["gateway-1", "gateway-2", "billing-1", "agents-2"]]
    assert order("gateway-1", "gateway-2", "billing-1") == [["gateway-1", "billing-1", "agents-2"], ["gateway-2"]]
    assert in_waves([], alive=()) == [[]]
