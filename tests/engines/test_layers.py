"""The engine inspector's list of layers, in the words of every version of TensorRT."""

import json

import pytest

from simo_engines.layers import read_layers
from simo_runtime.errors import BackendError


class TestLayers:
    def test_types_are_read_in_the_words_of_every_version(self) -> None:
        words = {
            "Half": "fp16",
            "Row major linear FP16 format": "fp16",
            "Float": "fp32",
            "Row major linear FP32": "fp32",
            "BFloat16": "bf16",
            "Thirty-two wide channel vectorized row major Int8 format.": "int8",
            "FP8": "fp8",
            "UInt8": "uint8",
            "Int32": "int32",
            "something else": "unknown",
        }
        for said, kind in words.items():
            layer = {"Name": "a", "Outputs": [{"Format/Datatype": said}]}
            assert read_layers(json.dumps({"Layers": [layer]})).types == {kind: 1}, said

    def test_a_product_of_int8_that_gives_floats_uses_int8(self) -> None:
        layer = {
            "Name": "gemm",
            "Inputs": [{"Format/Datatype": "Int8"}, {"Format/Datatype": "Int8"}],
            "Outputs": [{"Format/Datatype": "Half"}],
        }
        found = read_layers(json.dumps({"Layers": [layer]}))
        assert (found.types, found.using) == ({"fp16": 1}, {"fp16": 1, "int8": 1})

    def test_fused_attention_is_told_from_a_softmax_by_itself(self) -> None:
        names = ["_gemm_mha_v2_myl0_6", "_gemv_mha_v1_myl0_1", "sm90_fmha_fprop", "/attn/Softmax"]
        tactic = {"Name": "x", "TacticName": "_gemm_mha_v2_sm89_fp16", "Outputs": []}
        other = ["__myl_FcAdd_myl0_2", "mhatch"]
        found = read_layers(json.dumps({"Layers": [*names, tactic, *other]}))
        assert (found.fused_attention, found.softmax, found.count) == (4, 1, 7)
        assert found.types == {"unknown": 7}

    @pytest.mark.parametrize("text", ["", "{}", "[]", '{"Layers": 3}', '{"Layers": [3]}'])
    def test_what_is_no_list_of_layers_is_an_error(self, text: str) -> None:
        with pytest.raises(BackendError, match="gives no list of layers"):
            read_layers(text)
