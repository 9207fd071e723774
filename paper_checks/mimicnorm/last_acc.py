"""The abstract: a last batch norm also improves accuracy."""

from ..contract import Claim, Evidence, Published, Relation, Setting, Verdict
from ..tolerances import sampling
from .acc import at_best_rate
from .lr import DEPTH, EPOCHS, QUICK_RATES, RATES
from .recorded import FULL_VGG16, NARROW_VGG16, of_single_runs, study
from .trained import Mlp, because, interval, seeds_of

CLAIM = Claim(
    id="last_acc",
    title="accuracy of a last batch norm",
    statement="A batch norm behind the last layer improves accuracy, of networks with weight mean and without.",
    source="Abstract; Table 2, Fig. 6 and 7",
    scope="VGG16, ResNet18 and ResNet50 on CIFAR-100.",
    recorded=Verdict.OPEN,
    summary="The published networks were not trained. Beyond them: MLPs on digits, each at its best rate, reach the "
    "same within the error, and so does a narrow VGG16 on part of CIFAR-10. A variant of VGG16 at full width on "
    "CIFAR-100 gains 3.8 points over weight mean in ten epochs, at the best rate of each, within the error of one "
    "seed.",
    figures=("learning_rates",),
    published=(
        Published("best accuracy of VGG16 in 10 epochs at its best rate, MimicNorm, %", 49.53, "Table 2"),
        Published("the same with weight mean, %", 43.07, "Table 2"),
    ),
)
PAIRS = {"MimicNorm against weight mean": ("mimic_norm", "weight_mean"), "last BN against none": ("last_bn", "none")}
OPEN = (
    "the claim is about VGG16 and ResNets on CIFAR-100, as the paper trains them, with three seeds; MLPs, a narrow "
    "VGG16 and a variant of VGG16 at full width were trained here"
)


def check(setting: Setting) -> Evidence:
    """Compares test accuracies with and without a last batch norm, each at its best rate."""
    evidence = Evidence(open=OPEN)
    rates, depths = setting.size((QUICK_RATES[:1], (DEPTH,)), (RATES, (5, DEPTH, 19)))
    seeds = seeds_of(setting.seed, setting.size(3, 8))
    for subject in setting.track([Mlp(depth) for depth in depths], "last_acc: networks"):
        for names, pair in PAIRS.items():
            with_it, without = (at_best_rate(subject, name, rates, seeds) for name in pair)
            evidence.varied(
                "test accuracy that a last batch norm gains",
                expected=0.0,
                measured=(with_it - without).mean(),
                tolerance=sampling(
                    interval(with_it - without, 1 / len(subject.dataset.test.images)),
                    because(len(seeds), "one image"),
                    len(seeds),
                ),
                relation=Relation.AT_LEAST,
                condition=f"{names}, {subject.condition}, best of {EPOCHS} epochs, each at its best rate",
            )
    for name in (NARROW_VGG16, FULL_VGG16):
        found = study(name)
        for names, pair in PAIRS.items():
            if not all(map(found.rates, pair)):
                continue  # not trained
            best = [max(found.best("test", kind, rate)[0] for rate in found.rates(kind)) for kind in pair]
            evidence.varied(
                "test accuracy that a last batch norm gains",
                expected=0.0,
                measured=best[0] - best[1],
                tolerance=of_single_runs(found, "test"),
                relation=Relation.AT_LEAST,
                condition=f"{names}, {found.condition}, first seed, each at its best rate",
            )
    return evidence
