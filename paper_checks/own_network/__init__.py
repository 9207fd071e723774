"""The paper's questions to a network of the user's own: (f, params, x), in the form of the claims.

Nothing is on record of such a network: its checks have verdicts, and no verdict to compare them with.
"""

from types import ModuleType

from paper_checks.own_network import centring, conditioning, decorrelation, phase, scaling
from paper_checks.own_network.subject import Subject as Subject
from paper_checks.own_network.subject import subject_of as subject_of

CHECKS: dict[str, ModuleType] = {
    module.CLAIM.id: module for module in (decorrelation, phase, conditioning, scaling, centring)
}
