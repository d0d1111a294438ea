import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "resnet_backbones/__init__.py").read_text()).group(1)

setup(
    name="resnet_backbones",
    version=VERSION,
    description="Residual backbones for object detection, from ImageNet pretraining to COCO mAP",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[*find_packages(include=["resnet_backbones", "resnet_backbones.*"]), "resnet_backbones.configs"],
    package_dir={"resnet_backbones.configs": "configs"},
    package_data={
        "resnet_backbones": ["py.typed"],
        "resnet_backbones.analysis": ["truths.json"],
        "resnet_backbones.report": ["*.css", "*.html", "*.js"],
        "resnet_backbones.configs": ["*.yaml", "detectron2/*.yaml"],
    },
    entry_points={"console_scripts": ["resnet-backbones = resnet_backbones.__main__:main"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "numpy",
        "pillow>=10.1",
        "pycocotools",
        "braceexpand",
        "contourpy",
        "defusedxml",
        "fvcore",
        "hotcoco>=1.3",
        "iopath",
        "matplotlib",
        "omegaconf>=2.3",
        "orjson",
        "safetensors",
        "tensorboard",
        "tifffile",
        "tqdm",
    ],
    extras_require={
        "dev": [
            *("av", "huggingface_hub", "hypothesis", "pytest", "pytest-xdist", "ruff", "setuptools>=70.1"),
            *("onnx", "onnxruntime", "onnxscript", "openvino"),
            *("scipy", "segmentation-models-pytorch", "timm", "transformers>=5"),
        ],
        "hub": ["huggingface_hub"],
        "onnx": ["onnx", "onnxruntime", "onnxscript"],
        "openvino": ["nncf", "onnx", "onnxruntime", "onnxscript", "openvino"],
        "timm": ["timm"],
        "transformers": ["scipy", "transformers>=5"],
        "video": ["av"],
    },
)
