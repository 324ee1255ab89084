from mmap_st.extract.encoders import CustomModel as CustomModel
from mmap_st.extract.encoders import Encoder as Encoder
from mmap_st.extract.encoders import EncoderSpec as EncoderSpec
from mmap_st.extract.encoders import Pooling as Pooling
from mmap_st.extract.encoders import Preprocessing as Preprocessing
from mmap_st.extract.encoders import TimmModel as TimmModel
from mmap_st.extract.encoders import register as register

__all__: list[str]
