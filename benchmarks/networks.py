"""Which networks of torchvision and timm lookahead pruning takes, and how long that is.

`python benchmarks/networks.py` prunes all classification networks of torchvision and, where timm
is installed, one network of each of 80 designs (`pip install timm`; lapnb itself does not need it)
and writes benchmarks/networks.csv, from which `python docs/results.py` makes the tables of
README.md and RESULTS.md. On one core it took six minutes.

A row is a network with its initial weights and random statistics in its batch norms, followed with
one image. seconds: processor seconds to find the neighbours of all layers; left_dense: how many
layers the image never reaches, or nothing uses; refused: the sentence where it is not accepted.
"""

import gc
import time
import warnings
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torchvision
from tqdm import tqdm

import lapnb
from lapnb.pruning.flow import flow

FAMILIES = {  # by the beginnings of torchvision's names
    "AlexNet, VGG, SqueezeNet": ("alexnet", "vgg", "squeezenet"),
    "ResNet, ResNeXt": ("resnet", "resnext", "wide_resnet"),
    "DenseNet": ("densenet",),
    "GoogLeNet, Inception v3": ("googlenet", "inception"),
    "ShuffleNet v2, MNASNet, MobileNet": ("shufflenet", "mnasnet", "mobilenet"),
    "EfficientNet": ("efficientnet",),
    "RegNet": ("regnet",),
    "ConvNeXt": ("convnext",),
    "ViT": ("vit",),
    "Swin v2": ("swin_v2",),
    "Swin": ("swin",),
    "MaxViT": ("maxvit",),
}
TIMM = """
resnet18d resnetblur50 seresnet50 skresnet18 resnest14d ecaresnet26t gcresnet33ts densenet121
dla34 efficientnet_lite0 tf_efficientnet_b0 mixnet_s mobilenetv4_conv_small mobilenetv3_large_100
ghostnet_100 hardcorenas_a fbnetc_100 mnasnet_small lcnet_050 tinynet_e regnetx_002 regnety_002
repvgg_a0 repvit_m0_9 rexnet_100 hrnet_w18_small res2net50_26w_4s dpn48b xception41
inception_resnet_v2 inception_v4 vgg11_bn nf_resnet50 resnetv2_50 darknet53 cspresnet50
cspdarknet53 vovnet39a ese_vovnet19b_dw selecsls42 convnext_atto convnextv2_atto convmixer_768_32
edgenext_xx_small poolformer_s12 caformer_s18 vit_tiny_patch16_224 deit_tiny_distilled_patch16_224
deit3_small_patch16_224 beit_base_patch16_224 cait_xxs24_224 xcit_nano_12_p16_224
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 pit_ti_224 levit_128s mixer_s16_224
gmlp_s16_224 resmlp_12_224 crossvit_tiny_240 coat_tiny convit_tiny twins_pcpvt_small
visformer_tiny mobilevit_xxs mobilevitv2_050 efficientformer_l1 focalnet_tiny_srf davit_tiny
starnet_s1 inception_next_tiny mambaout_femto fastvit_t8 maxvit_rmlp_pico_rw_256 coatnet_0_rw_224
pvt_v2_b0 eva02_tiny_patch14_224 hiera_tiny_224 tiny_vit_5m_224 hgnet_tiny
"""
HUGE = 3e8  # weights, beyond which neighbours are found, but no masks made


def networks():
    """Library, family and name of each network, and what makes it."""
    for name in torchvision.models.list_models(module=torchvision.models):
        family = next(f for f, starts in FAMILIES.items() if name.startswith(starts))
        more = {"init_weights": False} if family.startswith("GoogLeNet") else {}
        yield "torchvision", family, name, partial(torchvision.models.get_model, name, **more)
    try:
        import timm
    except ImportError:
        return print("timm is not installed: its networks are left out")
    for name in TIMM.split():
        yield "timm", "timm", name, partial(timm.create_model, name)


def measured(model, side):
    """Prune a network by LAP; what its row says."""
    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_var.uniform_(0.1, 2)
    image = torch.rand(1, 3, side, side)
    try:
        layers = lapnb.prunable_layers(model)
        weights = [layer.values for layer in layers]
        start = time.process_time()
        found = flow(model, image, layers, weights)
        seconds = time.process_time() - start
        if sum(weight.numel() for weight in weights) < HUGE:
            masks = lapnb.prune_masks(model, "lap", 0.1, example=image)
            for factors, mask in zip(found, masks, strict=True):
                assert int(mask.sum()) == (round(0.1 * mask.numel()) if factors else mask.numel())
    except ValueError as error:
        return {"refused": " ".join(str(error).split())}
    dense = sum(factors is None for factors in found)
    return {"layers": len(layers), "left_dense": dense, "seconds": round(seconds, 2)}


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # of layers that are left dense: the rows count them
    rows = []
    for library, family, name, make in tqdm([*networks()], unit=" networks"):
        gc.collect()
        model = make()
        side = 299 if name == "inception_v3" else 224
        if library == "timm":
            side = model.default_cfg["input_size"][-1]
        row = {"library": library, "family": family, "network": name}
        rows.append(row | measured(model.eval(), side))
    rows = pd.DataFrame(rows).astype({"layers": "Int64", "left_dense": "Int64"})
    rows.to_csv(Path(__file__).with_suffix(".csv"), index=False)


if __name__ == "__main__":
    main()
