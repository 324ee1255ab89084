"""``python -m mmap_st`` is ``mmap``."""

from mmap_st.cli import main

if __name__ == "__main__":
    main()
