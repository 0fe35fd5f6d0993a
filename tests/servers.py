"""Real database servers for tests and benchmarks: on free loopback ports, in folders of their own.

    with PostgresServer(folder) as server:
        url = fresh_database(server)
        ...
        server.kill()   # every process of it at once, as in a crash
        server.start()  # again, on the same port and data

A server dies with the process that started it, however that ends: the kernel sends it a signal.
It does so when the *thread* that called ``start`` ends, so start servers from the main thread.

Every server keeps over ``kill`` what it had committed. ``durable=False`` leaves out the syncs
alone, which only a power cut would notice.
"""

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Literal, Self

import redis
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

Kind = Literal["postgres", "mariadb", "redis"]

# Of these, what `fresh_database` made first gives way to what it makes next.
KEPT_DATABASES = 4
_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.02
_PROGRAMS = {
    "postgres": ("postgres", "initdb"),
    "mariadb": ("mariadbd", "mariadb-install-db"),
    "redis": ("redis-server",),
}
_PACKAGES = {"postgres": "postgresql", "mariadb": "mariadb-server", "redis": "redis-server"}


class ServerFailed(RuntimeError):
    """A server cannot be started here, or did not do as it was told."""


def missing(kind: Kind) -> str | None:
    """Why such a server cannot be started here, in a sentence; ``None`` if it can."""
    for name in _PROGRAMS[kind]:
        if _program(name) is None:
            return f"{name} is not installed; on Debian and Ubuntu: apt install {_PACKAGES[kind]}"
    return None


def _program(name: str) -> Path | None:
    """Where a program is; Debian keeps some of these where PATH does not lead."""
    if (found := shutil.which(name)) is not None:
        return Path(found)
    versions = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    newest = sorted(versions, key=lambda path: path.parts[-3].zfill(3), reverse=True)
    return next((path for path in (*newest, Path("/usr/sbin", name)) if path.exists()), None)


class Server(ABC):
    """A server, set up and started on construction.

    Attributes:
        port: the same over its whole life.
        url: what goes into pinq's settings.
        folder: where its data is; not the one asked for, where only root could reach that.
        cpu_seconds: of it and its children, as far as they have ended.
    """

    kind: ClassVar[Kind]
    # The user to be where root may not, or need not, run it.
    account: ClassVar[str | None] = None
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    orphan_signal: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(self, folder: Path) -> None:
        if (reason := missing(self.kind)) is not None:
            raise ServerFailed(reason)
        folder.mkdir(parents=True, exist_ok=True)
        self.port = _free_port()
        self.cpu_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._user: str | None = None
        self._place: tempfile.TemporaryDirectory[str] | None = None
        if self.account is not None and os.geteuid() == 0:
            self._user = _existing(self.account)
            if not _reachable(folder):
                self._place = tempfile.TemporaryDirectory(prefix=f"pinq-{self.kind}-")
                folder = Path(self._place.name)
            shutil.chown(folder, self._user)
        self.folder = folder
        self._log = folder / "log"
        self._set_up()
        self.start()

    @property
    @abstractmethod
    def url(self) -> str: ...

    @property
    def pid(self) -> int:
        """Of its first process.

        Raises:
            ServerFailed: it does not run.
        """
        if self._process is None:
            raise ServerFailed(f"{self.kind} on port {self.port} does not run")
        return self._process.pid

    @abstractmethod
    def fresh_database(self) -> str:
        """Empty a database and return its URL: see the function of that name."""

    def start(self) -> None:
        """Start it, and wait until it answers; again on the same port and data after an end.

        Raises:
            ServerFailed: it runs already, ended at once, or did not answer within a minute.
        """
        if not self._ended():
            raise ServerFailed(f"{self.kind} on port {self.port} runs already")
        orphaned = self.orphan_signal.name.removeprefix("SIG")
        self._process = self._spawn(["setpriv", "--pdeathsig", orphaned, *self._command()])
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._answers():
            if self._ended():
                raise ServerFailed(f"{self.kind} did not start:\n{self._told()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerFailed(f"{self.kind} does not answer:\n{self._told()}")
            time.sleep(_LOOK_SECONDS)

    def kill(self) -> None:
        """SIGKILL every process of it at once, as a crash would; returns when all are gone."""
        pid = self.pid
        # Held still, it can neither start a child that we miss nor notice that one died.
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        children = _children(pid)
        for each in (pid, *children):
            try:
                os.kill(each, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._wait()
        # They are nobody's children now: whoever adopts them may leave them as zombies.
        while any(_alive(child) for child in children):
            time.sleep(_LOOK_SECONDS / 10)

    def stop(self) -> None:
        """End it in order, if it runs; by force after a minute."""
        self._end(self.stop_signal)

    def _end(self, how: signal.Signals) -> None:
        if self._ended():
            return
        os.kill(self.pid, how)
        try:
            self._wait()
        except TimeoutError:
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # At once: nobody will read the data again, so none of it need be written now.
        self._end(self.orphan_signal)
        if self._place is not None:
            self._place.cleanup()

    @abstractmethod
    def _set_up(self) -> None:
        """Make the data folder."""

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _answers(self) -> bool: ...

    def _run(self, *command: str) -> None:
        """A program that prepares the data, to its end."""
        process = self._spawn(command)
        if process.wait() != 0:
            raise ServerFailed(f"{command[0]} failed:\n{self._told()}")

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                list(command),
                cwd=self.folder,
                # Two MariaDBs starting in one folder of temporary files take each other's.
                env={**os.environ, "TMPDIR": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in a terminal is for the tests, which then end their servers.
                start_new_session=True,
                user=self._user,
                group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
                extra_groups=None if self._user is None else [],
            )

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._ended():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.kind} does not end:\n{self._told()}")
            time.sleep(_LOOK_SECONDS / 10)

    def _ended(self) -> bool:
        """Whether it does not run; takes leave of it if it has just ended."""
        if self._process is None:
            return True
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if pid == 0:
            return False
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._process = None
        self.cpu_seconds += usage.ru_utime + usage.ru_stime
        return True

    def _told(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]


class _SqlServer(Server):
    """What PostgreSQL and MariaDB have in common."""

    # The scheme by which SQLAlchemy knows the driver.
    driver: ClassVar[str]

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._durable = durable
        self._count = 0
        super().__init__(folder)

    def fresh_database(self) -> str:
        name = f"fresh_{self._count % KEPT_DATABASES}"
        if self._count < KEPT_DATABASES:
            self._execute(f"CREATE DATABASE {name}")
        else:
            self._empty(name)
        self._count += 1
        return self._url_of(name)

    @abstractmethod
    def _empty(self, database: str) -> None:
        """Rid a database of everything, its users' connections included."""

    def _url_of(self, database: str) -> str:
        return f"{self.url.rpartition('/')[0]}/{database}"

    def _answers(self) -> bool:
        try:
            self._execute("SELECT 1")
        except DBAPIError:
            return False
        return True

    def _execute(self, *statements: str, database: str = "") -> None:
        url = self._url_of(database) if database else self.url
        engine = create_engine(
            f"{self.driver}://{url.partition('://')[2]}",
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
            connect_args={"connect_timeout": 5},
        )
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))


class PostgresServer(_SqlServer):
    """PostgreSQL, trusting whoever connects as ``postgres``."""

    kind = "postgres"
    account = "postgres"
    stop_signal = signal.SIGINT  # waits for no client
    orphan_signal = signal.SIGQUIT  # at once too, and it takes its shared memory along
    driver = "postgresql+psycopg"

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def _set_up(self) -> None:
        command = [str(_program("initdb")), "--pgdata", str(self._data), "--no-sync"]
        self._run(*command, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale", "C")

    def _command(self) -> list[str]:
        synced = "on" if self._durable else "off"
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "fsync": synced,
            "full_page_writes": synced,
        }
        pairs = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(_program("postgres")), "-D", str(self._data), *pairs]

    def _empty(self, database: str) -> None:
        # A tenth of the time that dropping the database and copying it anew take.
        self._execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{database}' AND pid <> pg_backend_pid()",
            "DROP SCHEMA public CASCADE",
            "CREATE SCHEMA public",
            database=database,
        )

    @property
    def _data(self) -> Path:
        return self.folder / "data"


class MariadbServer(_SqlServer):
    """MariaDB with InnoDB, whose ``root`` has no password."""

    kind = "mariadb"
    account = "mysql"
    driver = "mysql+pymysql"

    @property
    def url(self) -> str:
        return f"mysql://root@127.0.0.1:{self.port}/mysql"

    def _set_up(self) -> None:
        command = [str(_program("mariadb-install-db")), "--no-defaults", "--skip-test-db"]
        root = "--auth-root-authentication-method=normal"
        self._run(*command, root, "--skip-name-resolve", f"--datadir={self._data}")

    def _command(self) -> list[str]:
        # 2 writes the log at every commit and syncs it once a second: no commit dies with the
        # server, and none waits for the disk.
        flush = 1 if self._durable else 2
        return [
            str(_program("mariadbd")),
            "--no-defaults",
            f"--datadir={self._data}",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
            # Relative to the data: the path of a socket must be short.
            "--socket=mariadb.sock",
            "--pid-file=mariadb.pid",
            "--skip-name-resolve",
            "--max-connections=200",
            "--character-set-server=utf8mb4",
            "--innodb-buffer-pool-size=128M",
            f"--innodb-flush-log-at-trx-commit={flush}",
        ]

    def _empty(self, database: str) -> None:
        self._execute(
            f"DROP DATABASE {database}",
            f"CREATE DATABASE {database}",
        )

    @property
    def _data(self) -> Path:
        return self.folder / "data"


class RedisServer(Server):
    """Redis, which logs what it is told (``appendonly``) and makes no snapshots."""

    kind = "redis"

    def __init__(
        self, folder: Path, *, appendfsync: Literal["always", "everysec", "no"] = "always"
    ) -> None:
        self.appendfsync = appendfsync
        self._count = 0
        super().__init__(folder)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def fresh_database(self) -> str:
        number = self._count % KEPT_DATABASES
        self._count += 1
        with redis.Redis(host="127.0.0.1", port=self.port, db=number) as client:
            client.flushdb()
        return f"{self.url.rpartition('/')[0]}/{number}"

    def _set_up(self) -> None:
        """It makes its data itself."""

    def _command(self) -> list[str]:
        command = [str(_program("redis-server")), "--bind", "127.0.0.1", "--port", str(self.port)]
        command += ["--dir", str(self.folder), "--databases", str(KEPT_DATABASES), "--save", ""]
        return [*command, "--appendonly", "yes", "--appendfsync", self.appendfsync]

    def _answers(self) -> bool:
        try:
            # Refused while it still reads its log.
            with redis.Redis(host="127.0.0.1", port=self.port) as client:
                client.ping()
        except (redis.ConnectionError, redis.ResponseError):
            return False
        return True


def fresh_database(server: Server) -> str:
    """The URL of a new, empty database on a server.

    At most four exist at a time: the next one takes the first one's place, whatever is in it and
    whoever uses it.
    """
    return server.fresh_database()


def _free_port() -> int:
    """A port that nobody listens on, below those that the kernel hands to clients.

    So no client of anybody's takes it while the server is down, nor reaches itself there.
    """
    dice = random.SystemRandom()
    for _ in range(100):
        port = dice.randrange(16_384, 32_768)
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise ServerFailed("no free port among 100 of 127.0.0.1")


def _existing(account: str) -> str:
    try:
        return pwd.getpwnam(account).pw_name
    except KeyError:
        return "nobody"


def _reachable(folder: Path) -> bool:
    """Whether other users may pass through all that is above it."""
    return all(parent.stat().st_mode & 0o001 for parent in folder.resolve().parents)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
