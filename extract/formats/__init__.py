"""Kinds of slide images, one module each; `mmap_st.extract.slide` chooses among them."""
