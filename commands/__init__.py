"""The commands, by what they work on; `mmap_st.cli` puts them together."""
