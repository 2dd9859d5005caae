# Start recipes with ./run, which installs what they need.

set quiet
set positional-arguments

# Show the whole thing at work in a throw-away machine
demo:
    vpcctl lab -- python -m vpcctl.lab.demo

# Run all tests; ARGS go to pytest
[no-exit-message]
test *ARGS:
    pytest -n 2 --dist worksteal "$@"

# Run the tests that need no kernel
[no-exit-message]
pure *ARGS:
    case " $*" in *" tests/"*) ;; *) set -- tests/pure "$@" ;; esac; pytest -n 2 --dist worksteal "$@"

# Run the tests against the kernel, each in a throw-away machine
[no-exit-message]
kernel *ARGS:
    case " $*" in *" tests/"*) ;; *) set -- tests/lab "$@" ;; esac; pytest -n 2 --dist worksteal "$@"

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

# Open a throw-away machine: a shell, or ARGS as a command
[no-cd, no-exit-message]
lab *ARGS:
    vpcctl lab "$@"

# Run vpcctl from this checkout
[no-cd, no-exit-message]
vpcctl *ARGS:
    vpcctl "$@"
