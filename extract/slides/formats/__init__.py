"""Kinds of slide images, one module each; `mmap_st.extract.slides.slide` chooses among them."""
