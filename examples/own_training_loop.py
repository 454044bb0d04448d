"""The weights as pure functions, in a training loop of your own: a frozen teacher, no gate.

python examples/own_training_loop.py
"""

import numpy as np

from clsd import equations, keras, tf

BLEND, DECAY = 1.0, 0.99


def make_network() -> keras.Model:
    """One logit a row."""
    return keras.Sequential([keras.layers.Embedding(100, 8), keras.layers.Dense(1)])


rng = np.random.default_rng(0)
item = rng.integers(100, size=20_000)
data = tf.data.Dataset.from_tensor_slices((item, (rng.random(20_000) < 0.1 + 0.3 * (item < 20)).astype("float32")))
student, teacher = make_network(), make_network()
for network in (student, teacher):
    network(item[:2])  # creates the variables
optimizer = keras.optimizers.legacy.Adagrad(0.1)
moments = tf.Variable(tf.zeros([4]))  # moving sums behind the normaliser c


@tf.function
def step(ids: tf.Tensor, y: tf.Tensor, weighted: bool) -> tf.Tensor:
    """One step; ``weighted`` is whether the warm-up is over."""
    q = tf.sigmoid(teacher(ids)[:, 0])
    with tf.GradientTape() as tape:
        s = student(ids)[:, 0]
        w = tf.ones_like(s)
        if weighted:
            sums = equations.moment_sums(q, tf.sigmoid(s), positive=y, alpha=1.0)
            moments.assign(DECAY * moments + (1 - DECAY) * sums)
            c = equations.normaliser(moments, "mean")
            w = equations.positive_weight(equations.confidence(q, tf.zeros_like(q), c), c, BLEND)
        loss = tf.reduce_mean(equations.row_losses(s, y, w))
    variables = student.trainable_variables
    optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    return loss


for epoch in range(3):
    if epoch == 1:  # the warm-up is over: freeze the teacher
        teacher.set_weights(student.get_weights())
    for ids, y in data.batch(500):
        loss = step(ids, y, weighted=epoch > 0)
    print(f"epoch {epoch + 1}  loss {float(loss):.4f}")
