# One virtual environment for everything in bin/: sourced by its absolute path,
# never run.
#
#     use_venv worker,dev
#
# returns when $root/.venv holds at least those extras of setup.cfg, installed
# for these very files; otherwise it makes or updates it first, with a line on
# stderr (stdout belongs to the command). The extras a .venv has are kept.
#
# What makes this safe:
# * The stamp, .venv/.pinq-stamp, is written last and by rename. It holds the
#   root, the extras and the text of the files that decide what is installed,
#   so a changed setup.cfg or a moved checkout no longer matches.
# * .venv/.pinq-unfinished stands from before the first change until after the
#   last. Where it is found, something was killed half-way: .venv is remade.
# * A lock (flock on this file) lets one at a time do it; the others wait and
#   find it done. It is inherited by pip, so a pip that outlives a killed shell
#   is waited for too.

bin=${BASH_SOURCE[0]%/*}
root=${bin%/*}
venv=$root/.venv
stamp=$venv/.pinq-stamp
unfinished=$venv/.pinq-unfinished
log=$venv/.pinq-pip.log

say() { printf 'pinq: %s\n' "$*" >&2; }
# 69 is EX_UNAVAILABLE: 1 and 2 have a meaning of their own in pinq.
die() { say "$@"; exit 69; }

use_venv() {
    local wanted=$1
    _venv_has "$wanted" || _make_venv "$wanted"
}

# Every step here is a builtin: this is all that a later use pays for.
_venv_has() {
    local wanted=$1 made_for='' has='' installed='' inputs extra
    [[ -x $venv/bin/python && -r $stamp ]] || return 1
    { IFS= read -r made_for && IFS= read -r has && IFS= read -r -d '' installed; } <"$stamp"
    _read_inputs
    [[ $made_for == "$root" && $installed == "$inputs" ]] || return 1
    for extra in ${wanted//,/ }; do
        [[ ,$has, == *,$extra,* ]] || return 1
    done
}

# Sets the caller's $inputs to the text of what decides the installation.
_read_inputs() {
    local name text
    inputs=''
    for name in pyproject.toml setup.cfg constraints.txt; do
        IFS= read -r -d '' text <"$root/$name" || true # it ends at the end of the file
        inputs+="[[$name]]"$'\n'$text
    done
}

_make_venv() {
    local wanted=$1 python has='' inputs news
    python=$(_find_python) || exit $?
    # Python rather than flock(1): it is here anyway, and not every system has that.
    exec 9<>"$bin/_venv.sh"
    "$python" -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("pinq: waiting for another process that is making .venv", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
' </dev/null || die "cannot lock $bin/_venv.sh"
    if _venv_has "$wanted"; then
        exec 9>&-
        return
    fi

    trap 'say "interrupted; the next use finishes .venv"; exit 130' INT
    trap 'say "terminated; the next use finishes .venv"; exit 143' TERM HUP
    if _venv_is_sound; then
        news="updating .venv"
        : >"$unfinished"
    else
        news="making .venv with $("$python" -c 'import platform; print("Python", platform.python_version())')"
        news+=" (first use: a minute or two)"
        # python first: whatever a kill leaves of the rest is then unsound.
        rm -rf -- "$venv/bin/python" && rm -rf -- "$venv" && mkdir -- "$venv" ||
            die "cannot remake $venv: check who owns it"
        : >"$unfinished"
    fi
    say "$news"
    if [[ ! -x $venv/bin/python ]]; then
        "$python" -m venv "$venv" </dev/null >"$log" 2>&1 || _fail "making .venv failed"
    fi

    if [[ -r $stamp ]]; then
        { IFS= read -r _ && IFS= read -r has; } <"$stamp"
        mv -f -- "$stamp" "$stamp.before"
    fi
    wanted=$(_union "$has" "$wanted")
    _read_inputs # before pip reads them, so that an edit meanwhile is noticed
    (cd -- "$root" && exec "$venv/bin/python" -m pip install --quiet --no-input \
        --disable-pip-version-check -c constraints.txt -e ".[$wanted]") \
        </dev/null >"$log" 2>&1 || _fail "pip install '.[$wanted]' failed"

    rm -f -- "$unfinished" "$stamp.before"
    printf '%s\n%s\n%s' "$root" "$wanted" "$inputs" >"$stamp.new"
    mv -f -- "$stamp.new" "$stamp"
    trap - INT TERM HUP
    exec 9>&-
}

# A .venv that can be added to: a Python with pip, made here, never left half-way.
_venv_is_sound() {
    local made_for=$root
    [[ -x $venv/bin/python && ! -e $unfinished ]] || return 1
    [[ -r $stamp ]] && IFS= read -r made_for <"$stamp"
    [[ $made_for == "$root" ]] || return 1
    "$venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' \
        </dev/null 2>/dev/null
}

# pip ended by itself and undid what it did: what stood before stands.
_fail() {
    cat -- "$log" >&2
    rm -f -- "$unfinished"
    [[ ! -e $stamp.before ]] || mv -f -- "$stamp.before" "$stamp"
    die "$1; its output is above and in $log"
}

_union() {
    local all=$1 extra
    for extra in ${2//,/ }; do
        [[ ,$all, == *,$extra,* ]] || all+=${all:+,}$extra
    done
    printf '%s' "$all"
}

# Prints a Python that can make the .venv. Each candidate is run: a pyenv shim
# may stand on PATH for a version that is not installed.
_find_python() {
    local name found without_venv=''
    for name in python3.11 python3.12 python3.13 python3.14 python3 \
        /usr/bin/python3.11 /usr/bin/python3 /usr/local/bin/python3 python; do
        found=$("$name" -c '
import os, sys
if sys.version_info >= (3, 11):
    # Not the name it was called by: /usr/bin/python3 may be another Python tomorrow.
    print(os.path.realpath(sys.executable))
' </dev/null 2>/dev/null) && [[ -n $found ]] || continue
        if "$found" -c 'import ensurepip, venv' </dev/null 2>/dev/null; then
            printf '%s' "$found"
            return
        fi
        without_venv=${without_venv:-$found}
    done
    [[ -z $without_venv ]] || die "$without_venv cannot make virtual environments;" \
        "on Debian and Ubuntu: apt install python3-venv (or ${without_venv##*/}-venv)"
    die "needs Python 3.11 or newer and found none;" \
        "on Debian and Ubuntu: apt install python3 python3-venv"
}
