"""What is read from an ONNX file's bytes is what onnx reads, and hostile files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sonobreast.errors import SonobreastError
from sonobreast.serving.bundle import Bundle
from sonobreast.serving.onnx_file import inspect


def model(node: onnx.NodeProto, *, weights: onnx.TensorProto | None = None, domain: str = "") -> onnx.ModelProto:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1])],
        [weights] if weights is not None else [],
    )
    sets = [helper.make_opsetid("", 18), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=sets)


PLAIN = helper.make_node("Relu", ["pixels"], ["logits"])


def refused(made: onnx.ModelProto, why: str) -> None:
    with pytest.raises(SonobreastError, match=why):
        inspect(made.SerializeToString(), "model.onnx")


def test_it_reads_what_onnx_reads(single: Bundle) -> None:
    content = (single.folder / "model.onnx").read_bytes()
    whole = onnx.load_from_string(content)
    onnx.checker.check_model(whole)
    found = inspect(content, "model.onnx")
    assert found.operators == {n.op_type for n in whole.graph.node}
    assert found.opset == next(o.version for o in whole.opset_import if o.domain == "") == single.about.opset
    assert inspect(model(PLAIN).SerializeToString(), "m").operators == {"Relu"}


def external() -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secret"
    return tensor


def test_weights_in_another_file_are_refused() -> None:
    refused(model(PLAIN, weights=external()), "another file")
    node = helper.make_node("Constant", [], ["logits"], value=external())
    refused(model(node), "another file")
    inner = helper.make_graph([node], "inner", [], [])
    refused(model(helper.make_node("If", ["pixels"], ["logits"], then_branch=inner, else_branch=inner)), "another file")


def test_operators_of_its_own_are_refused() -> None:
    node = helper.make_node("Steal", ["pixels"], ["logits"], domain="evil.ops")
    refused(model(node, domain="evil.ops"), "operator of its own")
    inner = helper.make_graph([node], "inner", [], [])
    refused(model(helper.make_node("If", ["pixels"], ["logits"], then_branch=inner, else_branch=inner)), "evil.ops")


def test_loops_functions_and_sparse_weights_are_refused() -> None:
    body = helper.make_graph([PLAIN], "body", [], [])
    refused(model(helper.make_node("Loop", ["pixels"], ["logits"], body=body)), "never end")
    made = model(PLAIN)
    made.functions.add().name = "f"
    refused(made, "functions")
    made = model(PLAIN)
    made.graph.sparse_initializer.add()
    refused(made, "sparse")


@pytest.mark.parametrize("content", [b"", b"\x00", b"hello world", b"\x3a\xff\xff\xff\xff\x0f", b"\x80" * 30])
def test_other_bytes_are_no_onnx_file(content: bytes) -> None:
    with pytest.raises(SonobreastError, match="no ONNX file"):
        inspect(content, "model.onnx")


def test_graphs_within_graphs_end() -> None:
    def field(number: int, content: bytes) -> bytes:
        length, size = bytearray(), len(content)
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        return bytes([number << 3 | 2]) + bytes(length) + bytes([size]) + content

    graph = b""
    for _ in range(5000):  # graph within attribute within node within graph
        graph = field(1, field(5, field(6, graph)))
    content = field(8, b"\x10\x12") + field(7, graph)
    with pytest.raises(SonobreastError, match="without end"):
        inspect(content, "model.onnx")


def test_any_cut_and_any_byte_gives_a_sentence_or_a_graph(single: Bundle) -> None:
    content = model(PLAIN, weights=numpy_helper.from_array(np.ones(3, np.float32), "w")).SerializeToString()
    rng = np.random.default_rng(0)
    cases = [content[:n] for n in range(len(content))]
    for _ in range(2000):
        changed = bytearray(content)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            changed[at] = rng.integers(0, 256)
        cases.append(bytes(changed))
    seen = 0
    for case in cases:
        try:
            inspect(case, "model.onnx")
        except SonobreastError:
            seen += 1
    assert 0 < seen < len(cases)


def test_nothing_is_kept_outside(single: Bundle) -> None:
    assert {p.name for p in Path(single.folder).iterdir()} == {
        "bundle.json",
        "bundle.sha256",
        "model.onnx",
        "model_card.md",
        "self_test",
    }
