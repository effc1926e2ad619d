"""Read a TensorFlow.js model as a TensorFlow graph; runs in the environment that converts it."""

import base64
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf


def web_graph(path: str) -> "tf.compat.v1.GraphDef":
    """The graph of a TensorFlow.js model: weights put in, fused layers taken apart into plain ones."""
    import numpy as np
    import tensorflow as tf
    from google.protobuf import json_format

    with open(path) as file:
        model = json.load(file)
    weights = {}
    for group in model["weightsManifest"]:
        data = b"".join(open(os.path.join(os.path.dirname(path), name), "rb").read() for name in group["paths"])
        place = 0
        for weight in group["weights"]:
            stored = np.dtype(weight.get("quantization", weight)["dtype"])
            count = int(np.prod(weight["shape"]))
            values = np.frombuffer(data, stored, count, place).reshape(weight["shape"])
            place += values.nbytes
            weights[weight["name"]] = values.astype(weight["dtype"])
    graph = tf.compat.v1.GraphDef()
    for entry in model["modelTopology"]["node"]:
        fused = [base64.b64decode(text).decode() for text in _list(entry, "fused_ops")]
        for name in ("num_args", "fused_ops", "epsilon", "leakyrelu_alpha"):
            if fused:
                entry["attr"].pop(name, None)
        node = json_format.ParseDict({**entry, "device": ""}, tf.compat.v1.NodeDef(), ignore_unknown_fields=True)
        if node.op == "Const":
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(weights[node.name]))
            graph.node.append(node)
            continue
        name, inputs = node.name, list(node.input)
        plain = {"_FusedConv2D": "Conv2D", "FusedDepthwiseConv2dNative": "DepthwiseConv2dNative"}
        steps = [plain.get(node.op, node.op), *fused]
        for number, op in enumerate(steps):
            last = number == len(steps) - 1
            part = graph.node.add(op=op, name=name if last else f"{name}/part{number}")
            if number == 0:
                part.input.extend(inputs[:2] if fused else inputs)
                for key, value in node.attr.items():
                    part.attr[key].CopyFrom(value)
            else:
                part.input.append(f"{name}/part{number - 1}")
                if op in ("BiasAdd", "Prelu"):
                    part.input.append(inputs[2])
                part.attr["T"].type = tf.float32.as_datatype_enum
    return graph


def _list(entry: dict, name: str) -> list[str]:
    return entry.get("attr", {}).get(name, {}).get("list", {}).get("s", [])
