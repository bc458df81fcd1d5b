"""The stack as plain processes of this machine, kept alive by a supervisor of its own.

`up` compares what should run with what does, and touches only the difference: it is the same command for the first
start, for going on after an interrupted one, and for applying a changed setting, scale or source file.
"""

import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence

from ops.engines.definitions import SERVICES
from ops.engines.packages import ensure_programs
from ops.failure import Failure
from ops.home import Home, remove_outside
from ops.ports import fixed_ports, listening_on, plan_ports
from ops.processes import end_processes, find_all, find_process, forget, signal_process
from ops.programs import Program, last_lines, write_script
from ops.stack import layout, state
from ops.stack.database import migrate, run_migrations, seed_admin
from ops.stack.display import Display
from ops.stack.environments import Addresses
from ops.stack.report import print_processes
from ops.stack.supervisor import ALIVE, EXIT_CONFIG, Process, Supervisor

_READY_LIMIT_S = 90
# PostgreSQL may need several tries after a kill, until its orphans are gone; a service that keeps crashing is broken.
_CRASHING_LIMIT_S = 12
_ENGINES = ("epmd-1", "rabbitmq-1", "redis-1", "postgres-1")


class NativeStack:
    def __init__(self, home: Home, display: Display) -> None:
        self._home, self._display = home, display
        self._supervisor = Supervisor(home)

    def up(self, values: Mapping[str, str], scale: Mapping[str, int]) -> Addresses:
        found = ensure_programs()
        where = self._place(values, scale, running=self._take_stock())
        engines = layout.engines(self._home, found, where)
        others = [*layout.stand_ins(self._home, where), *layout.services(self._home, where, scale)]
        self._ready_supervisor([*engines, *others])
        state.save(self._home, state.State(runner="native", ports=dict(where.ports), values=dict(values)))
        changed = self._bring_up("engines", engines)
        migrate(self._home, where)
        changed += self._bring_up("services", others)
        if changed:
            seed_admin(where)
        else:
            self._display.say("All of it was up already; nothing had to change.")
        return where

    def down(self) -> bool:
        """Stop everything; False if nothing ran."""
        running = self._take_stock()
        if not self._supervisor.answers():
            return False
        names = list(self._supervisor.processes())
        with self._display.waiting("Stopping"):
            self._supervisor.stop([name for name in names if name not in _ENGINES])
            self._supervisor.stop(names)
            self._supervisor.shut_down()
        for name in names:
            forget(self._home, name)
        return bool(running)

    def remove_data(self) -> None:
        remove_outside(self._home)

    def migrate(self, where: Addresses) -> str:
        return run_migrations("up", where)

    def pid(self, program: str) -> int | None:
        return find_process(self._home, program)

    def is_running(self) -> bool:
        return self._supervisor.answers()

    def show_status(self) -> bool:
        processes = sorted(self._supervisor.processes().values(), key=lambda process: process.name)
        findings = self.findings()
        listens = {process.name: self._ports_of(process.name) for process in processes}
        print_processes(processes, findings=findings, ports=listens)
        return all(findings.get(process.name, "not running") is None for process in processes)

    def follow_logs(self, wanted: str) -> None:
        files = sorted(self._home.logs.glob(f"{wanted}*.log"))
        if not files:
            raise Failure(
                f"No log begins with {wanted!r}. `make status` lists the names." if wanted else "No logs yet."
            )
        subprocess.run(("tail", "-n", "20", "-F", *files), check=False)

    def findings(self) -> dict[str, str | None]:
        """For each running program why it is not ready, or None."""
        remembered, processes = state.load(self._home), self._supervisor.processes()
        where = Addresses(ports=remembered.ports, values=remembered.values)
        scale = {service: sum(name.startswith(f"{service}-") for name in processes) for service in SERVICES}
        engines = layout.engines(self._home, ensure_programs(), where)
        programs = [*engines, *layout.stand_ins(self._home, where), *layout.services(self._home, where, scale)]
        return {program.name: program.probe() for program in programs if processes[program.name].state in ALIVE}

    def _ports_of(self, program: str) -> list[int]:
        return [port for name, port in state.load(self._home).ports.items() if layout.listener(name) == program]

    def _take_stock(self) -> dict[str, int]:
        """The pid of each program that the supervisor runs; what an earlier stack left without one is stopped."""
        if self._supervisor.answers():
            return {name: process.pid for name, process in self._supervisor.processes().items() if process.pid}
        if self._supervisor.end_if_deaf():
            self._display.say("Stopped a supervisor that no longer answered, and what it ran.")
        if orphans := find_all(self._home):
            self._display.say(f"Stopping what an earlier stack left without its supervisor: {', '.join(orphans)}.")
            if "postgres-1" in orphans:
                signal_process(orphans["postgres-1"], signal.SIGINT)  # it would wait for its clients on SIGTERM
            end_processes(orphans.values(), patience_s=15)
        for record in self._home.run.glob("*.born"):
            forget(self._home, record.stem)
        return {}

    def _place(self, values: Mapping[str, str], scale: Mapping[str, int], *, running: Mapping[str, int]) -> Addresses:
        usual = layout.usual_ports(self._home, scale)
        current = state.load(self._home).ports
        ours = {program: listening_on(pid) for program, pid in running.items()}
        plan = plan_ports(
            usual,
            fixed=fixed_ports(usual, values),
            current=current,
            running={name for name in usual if current.get(name) in ours.get(layout.listener(name), ())},
        )
        for sentence in plan.moved:
            self._display.say(sentence)
        return Addresses(ports={name: plan.ports[name] for name in usual}, values=values)

    def _ready_supervisor(self, programs: Sequence[Program]) -> None:
        self._supervisor.configure(programs)
        if self._supervisor.answers():
            self._supervisor.reload()
        else:
            self._supervisor.launch()
        wanted = {program.name for program in programs}
        for record in self._home.run.glob("*.born"):
            if record.stem not in wanted:
                forget(self._home, record.stem)

    def _bring_up(self, what: str, programs: Sequence[Program]) -> list[str]:
        """Start what is down or to be different, wait until all is ready, and tell what was started."""
        processes = self._supervisor.processes()
        due = [program for program in programs if not self._is_current(program, processes[program.name])]
        *waves, last = in_waves(due, alive={name for name, process in processes.items() if process.state in ALIVE})
        for wave in waves:
            self._restart(wave)
            self._await_ready(what, wave, [program.name for program in wave])
        self._restart(last)
        self._await_ready(what, programs, [program.name for program in last])
        return [program.name for program in due]

    def _restart(self, programs: Sequence[Program]) -> None:
        self._supervisor.stop([program.name for program in programs])
        for program in programs:
            self._start(program)

    def _is_current(self, program: Program, process: Process) -> bool:
        applied = self._home.run / f"{program.name}.applied"
        return process.state in ALIVE and applied.exists() and applied.read_text() == program.fingerprint

    def _start(self, program: Program) -> None:
        program.before_start()
        write_script(self._home, program)
        self._supervisor.start(program.name)
        (self._home.run / f"{program.name}.applied").write_text(program.fingerprint)

    def _await_ready(self, what: str, programs: Sequence[Program], started: Sequence[str]) -> None:
        pending = {program.name: program for program in programs}
        with self._display.waiting(f"Waiting for {what}:", started) as waiting:
            while pending:
                processes = self._supervisor.processes()
                reasons = {name: _why_not(program, processes[name]) for name, program in pending.items()}
                for name in [name for name, reason in reasons.items() if reason is None]:
                    del pending[name]
                    waiting.ready(name)
                self._give_up_on_the_hopeless(pending, processes, reasons, waiting.seconds)
                time.sleep(0.1 if pending else 0)

    def _give_up_on_the_hopeless(
        self,
        pending: Mapping[str, Program],
        processes: Mapping[str, Process],
        reasons: Mapping[str, str | None],
        seconds: float,
    ) -> None:
        for name in pending:
            if seconds > _READY_LIMIT_S or _is_hopeless(processes[name], seconds):
                service = name.rpartition("-")[0]
                raise Failure(
                    f"{name} does not get ready: {reasons[name]}\n"
                    f"The last lines of its log:\n{last_lines(self._home, name)}\n"
                    f"Mend what they say and run `make up` again; what runs already keeps running. "
                    f"`make logs S={service}` shows more, `make down` stops everything."
                )


def in_waves(due: Sequence[Program], *, alive: Collection[str]) -> list[list[Program]]:
    """In which order to restart: of what runs in several replicas one after the other, so that somebody answers."""
    waves: dict[int, list[Program]] = {}
    for program in due:
        number = int(program.name.rpartition("-")[2]) if program.name in alive else 1
        waves.setdefault(number, []).append(program)
    return [waves[number] for number in sorted(waves)] or [[]]


def _why_not(program: Program, process: Process) -> str | None:
    if process.state not in ALIVE:
        return f"its process has ended with status {process.exit_status}"
    return program.probe()


def _is_hopeless(process: Process, seconds: float) -> bool:
    if process.state in ALIVE:
        return False
    return process.state == "FATAL" or process.exit_status == EXIT_CONFIG or seconds > _CRASHING_LIMIT_S
