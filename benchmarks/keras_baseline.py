"""The study as one would write it with Keras: a frozen base behind an ImageDataGenerator, one fit a configuration.

    benchmarks/.keras/bin/python benchmarks/keras_baseline.py IMAGES --network ResNet50V2 [--epochs 4]

IMAGES holds ``train/`` and ``validation/`` with one folder of images for each class. Runs in an environment of its own
(`make bench-keras`) and is started by ``paper_grid.py``. The base has random weights: the time is the same. Prints one
JSON line: seconds and processor seconds of each epoch, and what was done, for the comparison to check.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from tensorflow.keras.preprocessing.image import ImageDataGenerator


class Clock(keras.callbacks.Callback):
    """Seconds and processor seconds of each epoch, its validation included."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.processor: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self.started = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self.seconds.append(time.perf_counter() - self.started[0])
        self.processor.append(time.process_time() - self.started[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images")
    parser.add_argument("--network", choices=["ResNet50V2", "MobileNetV2"], default="ResNet50V2")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()

    augmented = ImageDataGenerator(
        rescale=1 / 255,
        rotation_range=15,
        zoom_range=0.1,
        width_shift_range=0.1,
        height_shift_range=0.1,
        horizontal_flip=True,
    )
    plain = ImageDataGenerator(rescale=1 / 255)
    how = {"target_size": (224, 224), "batch_size": given.batch, "class_mode": "categorical"}
    train = augmented.flow_from_directory(f"{given.images}/train", seed=0, **how)
    validation = plain.flow_from_directory(f"{given.images}/validation", shuffle=False, **how)

    base = getattr(keras.applications, given.network)(weights=None, include_top=False, input_shape=(224, 224, 3))
    base.trainable = False
    model = keras.Sequential(
        [
            base,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(1e-4), loss="categorical_crossentropy", metrics=["accuracy"])
    count = [int((train.classes == c).sum()) for c in range(3)]
    weight = {c: train.samples / (3 * n) for c, n in enumerate(count)}
    clock = Clock()
    model.fit(train, validation_data=validation, epochs=given.epochs, class_weight=weight, callbacks=[clock], verbose=0)
    print(
        json.dumps(
            {
                "network": given.network,
                "seconds": clock.seconds,
                "processor_s": clock.processor,
                "train": train.samples,
                "validation": validation.samples,
                "batch": given.batch,
                "trained_parameters": sum(int(keras.ops.size(w)) for w in model.trainable_weights),
                "keras": keras.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
