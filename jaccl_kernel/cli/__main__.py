"""`python -m jaccl_kernel.cli ...` is `jaccl ...`."""

from jaccl_kernel.cli.main import main

if __name__ == "__main__":
    main()
