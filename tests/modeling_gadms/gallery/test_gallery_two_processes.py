"""`accelerate launch -m modeling_gadms.gallery`: two processes share the images, and no image is there twice."""

import os

import forked
import numpy as np
from tiny import save_published, tiny_rows

from modeling_gadms.gallery import Gallery
from modeling_gadms.gallery.rows import vector_array


def test_two_processes_build_the_gallery_of_one(tmp_path):
    save_published(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    lines = ["uri,camera"]
    for number, row in enumerate(tiny_rows(21)):
        row["image"].save(tmp_path / "photos" / f"{number:02d}.png")
        lines.append(f"{number:02d}.png,{number}")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    galleries = [Gallery.create(tmp_path / name, tmp_path / "model") for name in ("one", "two")]
    galleries[0].add(tmp_path / "photos", tmp_path / "table.csv")
    command = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
    command += ["--multi_gpu", "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", "modeling_gadms.gallery", "add", "two", "photos", "--metadata", "table.csv"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = forked.run(command, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("21 added, 1 skipped; 21 images in two") == 1
    found = []
    for gallery in galleries:
        rows = gallery._rows().read(["id", "uri", "camera", "vector"])
        vectors = vector_array(rows["vector"]).astype(np.float32)
        order = np.argsort(rows["id"].to_pylist())
        found.append(([rows.drop_columns("vector").to_pylist()[place] for place in order], vectors[order]))
    assert found[0][0] == found[1][0]
    assert np.allclose(found[0][1], found[1][1], atol=1e-3)
