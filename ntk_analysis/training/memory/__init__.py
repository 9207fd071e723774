"""What training keeps in memory: the arrays between a network's forward and backward pass, from shapes alone."""

from ntk_analysis.training.memory.accounting import Account as Account
from ntk_analysis.training.memory.accounting import account as account
from ntk_analysis.training.memory.accounting import kept_by as kept_by
from ntk_analysis.training.memory.published import TABLE_1 as TABLE_1
from ntk_analysis.training.memory.published import TABLE_3 as TABLE_3
from ntk_analysis.training.memory.published import WHY as WHY
from ntk_analysis.training.memory.published import Published as Published
from ntk_analysis.training.memory.residuals import CONSTANTS as CONSTANTS
from ntk_analysis.training.memory.residuals import COPIES as COPIES
from ntk_analysis.training.memory.residuals import kept_bytes as kept_bytes
