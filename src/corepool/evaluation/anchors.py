"""Figures that others reached or calculated, as data with their source, to stand beside ours.

They must never be shown as results of this project.
"""

from __future__ import annotations

NETWORKS = ("vgg16", "resnet50", "inception_v3", "mobilenet_v1")
TITLES = {
    "vgg16": "VGG16",
    "resnet50": "ResNet50",
    "inception_v3": "Inception v3",
    "mobilenet_v1": "MobileNet v1",
    "mixed": "mixed",
}

PAPER = "S. Zeng et al., FCCM 2020, arXiv 2003.12101"
DEMO = "public demonstration by the paper's authors"

PAPER_OVER_SINGLE = (1.07, 1.69)
PAPER_OVER_MULTI = (1.88, 3.12)
PAPER_DYNAMIC_MS = 1.0
PAPER_STATIC_S = 100.0

# Measured end to end by the vendor: Vitis AI model zoo tables, versions 1.2 to 2.5. Peak in TOPS, frames/s by network.
AMD_SOURCE = "AMD Vitis AI model zoo, versions 1.2 to 2.5"
AMD = {
    "KV260, 1 x B4096, 300 MHz": (
        1.229,
        {"vgg16": 21.7, "resnet50": 88.0, "inception_v3": 67.4, "mobilenet_v1": 425.6},
    ),
    "ZCU104, 2 x B4096, 300 MHz": (
        2.458,
        {"vgg16": 37.1, "resnet50": 175.0, "inception_v3": 121.5, "mobilenet_v1": 784.0},
    ),
    "ZCU102, 3 x B4096, 281 MHz, one DDR": (
        3.453,
        {"vgg16": 40.9, "resnet50": 173.2, "inception_v3": 135.3, "mobilenet_v1": 951.0},
    ),
    "U50, 6 engines, 300 MHz, HBM": (7.373, {"vgg16": 164.7, "resnet50": 631.0, "inception_v3": 398.5}),
    "U50LV, 8 engines, 165 MHz, HBM": (
        5.407,
        {"vgg16": 121.1, "resnet50": 409.6, "inception_v3": 300.9, "mobilenet_v1": 2415.0},
    ),
}
AMD_EQUAL_PEAK = "ZCU104, 2 x B4096, 300 MHz"

# A roofline of 16 cores of u200: DDR at 0.75, 256 cycles lost a layer, memory seen as one. Not a measurement.
ROOFLINE_SOURCE = "roofline on paper: 16 cores of u200, DDR at 0.75, 256 cycles lost a layer, memory seen as one"
ROOFLINE = {
    "width": {"vgg16": 21.0, "resnet50": 71.0, "inception_v3": 58.0, "mobilenet_v1": 410.0},
    "paper": {"vgg16": 65.9, "resnet50": 236.0, "inception_v3": 134.0, "mobilenet_v1": 1373.0},
    "height": {"vgg16": 66.9, "resnet50": 248.0, "inception_v3": 143.0, "mobilenet_v1": 1432.0},
    "grid": {"vgg16": 66.9, "resnet50": 262.0, "inception_v3": 177.0, "mobilenet_v1": 1479.0},
    "best": {"vgg16": 68.0, "resnet50": 288.0, "inception_v3": 190.0, "mobilenet_v1": 1598.0},
}

# The same kind of roofline for one static core of 4096 MACs: (row-wise pixels, flattened pixels and stem folding).
LARGE_SOURCE = "roofline on paper of one core of equal peak, row-wise pixels / flattened pixels and stem folding"
LARGE = {
    "16x16x16": {
        "vgg16": (63.9, 70.3),
        "resnet50": (204.0, 273.0),
        "inception_v3": (123.0, 194.0),
        "mobilenet_v1": (1112.0, 1351.0),
    },
    "8x16x32": {
        "vgg16": (66.2, 70.5),
        "resnet50": (241.0, 284.0),
        "inception_v3": (153.0, 184.0),
        "mobilenet_v1": (962.0, 1058.0),
    },
    "8x32x16": {
        "vgg16": (64.6, 69.9),
        "resnet50": (214.0, 284.0),
        "inception_v3": (155.0, 189.0),
        "mobilenet_v1": (1183.0, 1366.0),
    },
    "4x32x32": {
        "vgg16": (66.9, 70.0),
        "resnet50": (220.0, 290.0),
        "inception_v3": (163.0, 178.0),
        "mobilenet_v1": (936.0, 1056.0),
    },
}

# What we set out to reach with one image on 16 cores: (first, then) in frames/s.
GOALS = {
    "vgg16": (65.0, 67.0),
    "resnet50": (255.0, 275.0),
    "inception_v3": (168.0, 177.0),
    "mobilenet_v1": (1400.0, 1600.0),
}
GOAL_SCALING = 0.90  # of n times one core
GOAL_OVER_LARGE = {"vgg16": 1.07, "resnet50": 1.2, "inception_v3": 1.3, "mobilenet_v1": 1.3}  # over 16x16x16
GOAL_OVER_BEST = 1.0
GOAL_RATIO_OF_MEANS = 1.84
GOAL_MEAN_OF_RATIOS = 3.2
PERFECT = {"ratio of means": 16 / 8.5, "mean of ratios": sum(16 / n for n in range(1, 17)) / 16}  # 1..16 tasks

# Changing the hardware instead of compiling again: arithmetic on the vendor's rates for a VU9P.
RECONFIGURATION_SOURCE = "arithmetic on the vendor's configuration rates, UltraScale+ VU9P"
FULL_RECONFIGURATION_MS = (150.0, 800.0)
PARTIAL_RECONFIGURATION_MS = (6.0, 10.0)  # a sixteenth of the fabric

# Area of the vendor's static cores: PG338 v1.2, table 9, ZCU102, few DSPs. Name: MACs a cycle, LUT, FF, BRAM36, DSP.
AREA_SOURCE = "AMD PG338 v1.2, table 9"
AREA = {
    "B512": (256, 20759, 33572, 69.5, 66),
    "B1024": (512, 29155, 49823, 101.5, 130),
    "B4096": (2048, 44583, 99791, 249.5, 514),
}

# What the card of the paper's authors has.
U200_SOURCE = "A U200's resources by its data sheet, AMD DS962"
U200 = {"lut": 1_182_240, "ff": 2_364_480, "bram36": 2160, "uram": 960, "dsp": 6840}
