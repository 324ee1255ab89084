"""The declarations of encoders, one a model, grouped by what they were trained on and their size."""

from mmap_st.extract.encoders.families import natural, pathology_large, pathology_small, vision_language
from mmap_st.extract.encoders.spec import EncoderSpec

ENCODERS: dict[str, EncoderSpec] = {
    spec.name: spec
    for family in (natural, pathology_small, pathology_large, vision_language)
    for spec in family.ENCODERS
}
