# Start recipes with ./run, which installs what they need.

set quiet
set positional-arguments

# Workers of pytest: one more than there are processors, because a test of the lab often waits for the kernel
workers := `echo $(($(nproc) + 1))`

# Show the whole thing at work in a throw-away machine
demo:
    vpcctl lab -- python -m vpcctl.lab.demo

# Run all tests; ARGS go to pytest
[no-exit-message]
test *ARGS:
    pytest -n {{workers}} --dist worksteal "$@"

# Run the tests that need no kernel
[no-exit-message]
pure *ARGS:
    case " $*" in *" tests/"*) ;; *) set -- tests/pure "$@" ;; esac; pytest -n {{workers}} --dist worksteal "$@"

# Run the tests against the kernel, each in a throw-away machine
[no-exit-message]
kernel *ARGS:
    case " $*" in *" tests/"*) ;; *) set -- tests/lab "$@" ;; esac; pytest -n {{workers}} --dist worksteal "$@"

# Start Docker, podman, firewalld, ufw, libvirt and wg-quick beside VPCs, each in a throw-away machine; as root it
# installs them as Debian packages whose services do not start
[no-exit-message]
coexist *ARGS:
    python -m tests.coexist.install
    pytest -n {{workers}} --dist worksteal -rs tests/coexist "$@"

# Show which lines the tests without a kernel run
[no-exit-message]
coverage *ARGS:
    pytest -n {{workers}} --dist worksteal --cov --cov-report term:skip-covered tests/pure "$@"

# Write the rulesets of the golden cases anew, after a deliberate change of the compiler
[no-exit-message]
bless:
    VPCCTL_BLESS=1 pytest -n {{workers}} tests/pure/test_golden.py
    git --no-pager diff --stat -- rulesets/golden

# Run the benchmark NAME of benchmarks/ with ARGS, or all of them, in a throw-away machine; charts draws what they found
[no-exit-message]
bench *NAME_ARGS:
    #!/bin/sh
    set -eu
    run() {
        name=$1
        shift
        # Packages come from the network, so they are installed only with --install.
        case $name,$* in compare,*--install*) python -m benchmarks.install ;; esac
        case $name in
            charts) python -m benchmarks.charts "$@" ;;
            *) vpcctl lab -- python -m "benchmarks.$name" "$@" ;;
        esac
    }
    if [ $# -gt 0 ]; then
        run "$@"
        exit
    fi
    for name in commands restore rules scale loss packets changes hardened bombs compare; do
        printf '\n--- %s\n' "$name"
        run "$name"
    done

# Check style
[no-exit-message]
lint:
    ruff check
    ruff format --check

# Check types
[no-exit-message]
types:
    mypy

# Put the code into the house's shape
format:
    ruff check --fix
    ruff format

# Build the documentation site into build/site; a warning is an error
[no-exit-message]
docs:
    mkdocs build --strict --site-dir build/site

# Open a throw-away machine: a shell, or ARGS as a command
[no-cd, no-exit-message]
lab *ARGS:
    vpcctl lab "$@"

# Run vpcctl from this checkout
[no-cd, no-exit-message]
vpcctl *ARGS:
    vpcctl "$@"
