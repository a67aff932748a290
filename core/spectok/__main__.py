"""``python -m spectok``, which ``accelerate launch -m spectok`` and ``torchrun -m spectok`` run."""

from spectok.cli import main

if __name__ == "__main__":
    main()
